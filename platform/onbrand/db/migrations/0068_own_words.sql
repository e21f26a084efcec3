-- depends: 0067_account_room
-- What a credential says for itself counts for no more than it may do: lines of the record, numbers of names, limits, keys
-- of repeated calls.
set role onbrand_definer;

-- Actions that a user's transaction writes into the record: not the system's, the operator's or another function's; and of
-- an admin's only an admin.
create function private.may_record(what text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  if what ~ '^(job\.(start|sample|fail|submit|canceled)|generation\.(start|fail|complete|canceled)|model\.publish|image\.store'
      '|upload\.expire|brand\.set_limits|invitation\.(accept|decline))$' then
    return false;
  end if;
  if what ~ '^(key|member)\.|^invitation\.|^brand\.create$|^(asset|document|model|job)\.delete$' then
    return private.is_admin();
  end if;
  return true;
end $$;

create or replace function private.record(b text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.acts_in(b), false) then
    raise exception 'no record of this brand' using errcode = '42501';
  end if;
  if current_setting('role', true) = 'brand_system' then
    perform private.audit_append(b, 'system', private.ctx('on_behalf_of')::uuid, private.ctx('job_id'), what, d);
    return;
  end if;
  if not private.may_record(what) then
    raise exception 'this is not for the caller to record' using errcode = '42501';
  end if;
  perform private.audit_append(b, case when private.ctx('key_id') is null then 'user' else 'key' end,
    private.uid(), private.ctx('key_id'), what, d);
end $$;

-- As before; what a member does to their own membership is recorded here and by nobody else.
create or replace function private.leave_brand(b text) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.acts_in(b), false) or not private.may('manage') then
    raise exception 'no membership to end' using errcode = '42501';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', b));
  perform 1 from app.brand_users bu where bu.brand_id = b and bu.user_id = private.uid() for update;
  perform private.audit_append(b, case when private.ctx('key_id') is null then 'user' else 'key' end,
    private.uid(), private.ctx('key_id'), 'member.remove', jsonb_build_object('user_id', private.uid()));
  delete from app.brand_users bu where bu.brand_id = b and bu.user_id = private.uid();
  return found;
end $$;

-- The first of n fresh numbers of a series of a brand: a user's of assets and documents, the system's of all.
create or replace function private.next_number(b text, what text, n integer) returns bigint
language plpgsql volatile security definer set search_path = '' as $$
declare taken bigint;
begin
  if not coalesce(private.acts_in(b), false) or n not between 1 and 500
     or (current_setting('role', true) = 'authenticated' and not coalesce(
       what ~ '^asset:(logo|product|person|packaging|other)$' or what ~ '^document:', false)) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  insert into app.numbers as c (brand_id, series, last) values (b, what, n)
  on conflict (brand_id, series) do update set last = c.last + excluded.last
  returning c.last into taken;
  return taken - n + 1;
end $$;

-- An account has so many brands at most: as the platform says in its signed claims, and 20 without a word.
create or replace function private.tg_few_brands() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
declare
  most integer := coalesce((private.ctx('brands_per_account'))::integer, 20);
begin
  if current_setting('role', true) <> 'authenticated' or new.user_id is distinct from private.uid() then
    return new;  -- the owner's, or refused by the policy: how many brands others have is nobody's to learn
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('brands', new.user_id::text));
  if (select count(*) from app.brands b where uuid_send(b.user_id) = uuid_send(new.user_id)) >= most then
    raise exception 'an account has so many brands at most' using errcode = 'OB005';
  end if;
  return new;
end $$;

-- Two keys of one maker have no idempotency keys in common: whose they are says the credential, too.
create or replace function private.my_caller() returns text
language plpgsql stable security definer set search_path = '' as $$
declare c jsonb := private.claims();
begin
  if c ? 'brand_id' then
    return private.my_brand() || ' ' || (c ->> 'sub') || ' ' || coalesce(c ->> 'key_id', '');
  end if;
  if private.credential_lives() then return ' ' || (c ->> 'sub') || ' ' || coalesce(c ->> 'key_id', ''); end if;
  return null;
end $$;

create or replace function private.claimed_caller() returns jsonb
language sql stable
return jsonb_build_object(coalesce(private.claimed() || ' ' || split_part(current_setting('request.scope', true), '|', 5)
  || ' ' || case split_part(current_setting('request.scope', true), '|', 7) when 'key'
    then split_part(current_setting('request.scope', true), '|', 8) else '' end, ''), true);

reset role;
set role onbrand_owner;
alter table app.idempotency_keys drop column caller cascade;
alter table app.idempotency_keys
  add column key_id text not null default '' check (char_length(key_id) <= 36),
  add column caller text not null generated always as
    (coalesce(brand_id, '') || ' ' || user_id::text || ' ' || key_id) stored;
alter table app.idempotency_keys add primary key (caller, key);
create policy wall_user on app.idempotency_keys as restrictive for all to authenticated
  using ((caller, true) = (select s.caller, s.caller is not null from (select private.my_caller() offset 0) as s (caller))
    and ((select private.claimed_caller()))[caller] is not null)
  with check (caller = (select private.my_caller()));
grant insert (key_id) on app.idempotency_keys to authenticated;
call app.keep_no_statistics('app.idempotency_keys');
reset role;
