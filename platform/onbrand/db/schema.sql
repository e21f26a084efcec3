CREATE SCHEMA app;

ALTER SCHEMA app OWNER TO onbrand_owner;

CREATE SCHEMA audit;

ALTER SCHEMA audit OWNER TO onbrand_owner;

CREATE SCHEMA identity;

ALTER SCHEMA identity OWNER TO onbrand_identity;

CREATE SCHEMA private;

ALTER SCHEMA private OWNER TO onbrand_owner;

CREATE SCHEMA storage;

ALTER SCHEMA storage OWNER TO onbrand_owner;

CREATE FUNCTION app.brand_isolation_condition(column_name text, brand_call text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO ''
    AS $_$
  select format('(%1$I, true) = (select s.brand, s.brand is not null from (select %2$s offset 0) as s (brand)) '
    'and ((select private.claimed_brand_object()))[%1$I] is not null', column_name, brand_call)
$_$;

ALTER FUNCTION app.brand_isolation_condition(column_name text, brand_call text) OWNER TO onbrand_owner;

CREATE PROCEDURE app.disable_column_statistics(IN t regclass)
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
declare col name;
begin
  for col in select a.attname from pg_catalog.pg_attribute a
    where a.attrelid = t and a.attnum > 0 and not a.attisdropped
  loop
    execute format('alter table %s alter column %I set statistics 0', t, col);
  end loop;
end $$;

ALTER PROCEDURE app.disable_column_statistics(IN t regclass) OWNER TO onbrand_owner;

CREATE PROCEDURE app.enable_brand_isolation(IN t regclass)
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  execute format('alter table %s enable row level security', t);
  execute format('alter table %s force row level security', t);
  execute format('create policy brand_isolation_user on %s as restrictive for all to authenticated '
    'using (%s) with check (brand_id = (select private.my_brand()))', t,
    app.brand_isolation_condition('brand_id', 'private.my_brand()'));
  execute format('create policy brand_isolation_system on %s as restrictive for all to brand_system '
    'using (%s) with check (brand_id = (select private.ticket_brand()))', t,
    app.brand_isolation_condition('brand_id', 'private.ticket_brand()'));
  execute format('create policy function_owner on %s to onbrand_definer using (true) with check (true)', t);
  execute format('create trigger brand_immutable before update on %s '
    'for each row execute function app.tg_brand_immutable()', t);
  call app.disable_column_statistics(t);
end $$;

ALTER PROCEDURE app.enable_brand_isolation(IN t regclass) OWNER TO onbrand_owner;

CREATE PROCEDURE app.require_scope(IN t regclass, IN verb text, IN scope text)
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if verb not in ('insert', 'update', 'delete') then
    raise exception 'require_scope accepts insert, update and delete' using errcode = '22023';
  end if;
  execute format('create policy %I on %s as restrictive for %s to authenticated %s %s', 'scope_' || verb, t, verb,
    case when verb <> 'insert' then format('using ((select private.has_scope(%L)))', scope) end,
    case when verb <> 'delete' then format('with check ((select private.has_scope(%L)))', scope) end);
end $$;

ALTER PROCEDURE app.require_scope(IN t regclass, IN verb text, IN scope text) OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_asset_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if exists (select 1 from app.job_assets ja join app.lora_training_jobs j
      on j.brand_id = ja.brand_id and j.id = ja.job_id
      where ja.brand_id = old.brand_id and ja.asset_id = old.id and j.status in ('pending', 'training')) then
    raise exception 'a training job that has not ended uses this asset' using errcode = 'OB004';
  end if;
  return old;
end $$;

ALTER FUNCTION app.tg_asset_guard() OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_brand_immutable() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if new.brand_id is distinct from old.brand_id then
    raise exception 'brand_id is immutable' using errcode = '42501';
  end if;
  return new;
end $$;

ALTER FUNCTION app.tg_brand_immutable() OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_generation_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at then
    raise exception 'a request to cancel stands' using errcode = 'OB003';
  end if;
  if old.status in ('completed', 'failed', 'canceled')
     and to_jsonb(new) - 'model_id' is distinct from to_jsonb(old) - 'model_id' then
    raise exception 'the generation has ended' using errcode = 'OB002';
  end if;
  return new;
end $$;

ALTER FUNCTION app.tg_generation_guard() OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_job_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
declare may_change text[] := array['name', 'model_id', 'model_url', 'start_model_id', 'retry_of'];
begin
  if (old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at)
     or (old.stop_requested_at is not null and new.stop_requested_at is distinct from old.stop_requested_at) then
    raise exception 'a request to cancel stands' using errcode = 'OB003';
  end if;
  if old.model_id is not null and new.model_id is null then new.model_url := null; end if;
  if (new.start_model_id is not null and new.start_model_id is distinct from old.start_model_id)
     or (new.retry_of is not null and new.retry_of is distinct from old.retry_of) then
    raise exception 'a job begins where it was created to begin' using errcode = '42501';
  end if;
  if old.status not in ('completed', 'failed', 'canceled') then return new; end if;
  if to_jsonb(new) - may_change is distinct from to_jsonb(old) - may_change
     or (new.model_id is not null and new.model_id is distinct from old.model_id)
     or (new.model_url is not null and new.model_url is distinct from old.model_url) then
    raise exception 'the job has ended' using errcode = 'OB002';
  end if;
  return new;
end $$;

ALTER FUNCTION app.tg_job_guard() OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_upload_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if old.status <> 'pending' and to_jsonb(new) - 'swept_at' is distinct from to_jsonb(old) - 'swept_at' then
    raise exception 'the upload has ended' using errcode = 'OB002';
  end if;
  if old.status = 'pending' and new.status = 'completed' and old.expires_at < clock_timestamp() then
    raise exception 'the upload has expired' using errcode = 'OB002';
  end if;
  return new;
end $$;

ALTER FUNCTION app.tg_upload_guard() OWNER TO onbrand_owner;

CREATE FUNCTION audit.has_object_id(action text, d jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    SET search_path TO ''
    AS $_$
  select action like 'brand.%' or exists (select 1 from jsonb_object_keys(d) k where k ~ '_ids?$')
$_$;

ALTER FUNCTION audit.has_object_id(action text, d jsonb) OWNER TO onbrand_owner;

CREATE FUNCTION audit.is_valid_detail(d jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    SET search_path TO ''
    AS $_$
  select jsonb_typeof(d) = 'object' and octet_length(d::text) <= 100000 and not exists (
    select 1 from jsonb_each(case jsonb_typeof(d) when 'object' then d else '{}' end) f(name, v)
    where f.name !~ '^[a-z][a-z0-9_]{0,39}$' or exists (
      select 1 from jsonb_array_elements(case jsonb_typeof(f.v) when 'array' then f.v else jsonb_build_array(f.v) end) x
      where case jsonb_typeof(x)
        when 'string' then char_length(x #>> '{}') > 300 or (x #>> '{}') collate "C" !~ '^[!-~]*$'
        when 'number' then x #>> '{}' !~ '^-?[0-9]{1,18}$'
        when 'object' then true when 'array' then true else false end))
$_$;

ALTER FUNCTION audit.is_valid_detail(d jsonb) OWNER TO onbrand_owner;

CREATE TABLE audit.events (
    seq bigint NOT NULL,
    brand_id text NOT NULL,
    at timestamp with time zone NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    detail jsonb NOT NULL,
    prev bytea,
    hash bytea NOT NULL,
    user_id uuid,
    credential text,
    CONSTRAINT action_is_a_word CHECK ((action ~ '^[a-z][a-z_]{0,29}\.[a-z][a-z_]{0,29}$'::text)),
    CONSTRAINT credential_named CHECK (((actor = 'user'::text) = (credential IS NULL))),
    CONSTRAINT detail_is_plain CHECK (audit.is_valid_detail(detail)),
    CONSTRAINT events_credential_check CHECK ((char_length(credential) <= 80)),
    CONSTRAINT known_actor CHECK ((actor = ANY (ARRAY['user'::text, 'key'::text, 'system'::text]))),
    CONSTRAINT object_named CHECK (audit.has_object_id(action, detail)),
    CONSTRAINT seq_counts CHECK (((seq > 0) AND ((seq = 1) = (prev IS NULL)))),
    CONSTRAINT someone_acted CHECK (((user_id IS NOT NULL) OR (actor = 'system'::text)))
);
ALTER TABLE ONLY audit.events ALTER COLUMN seq SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN at SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN actor SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN action SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN detail SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN prev SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN hash SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY audit.events ALTER COLUMN credential SET STATISTICS 0;

ALTER TABLE ONLY audit.events FORCE ROW LEVEL SECURITY;

ALTER TABLE audit.events OWNER TO onbrand_owner;

CREATE FUNCTION audit.event_hash(e audit.events) RETURNS bytea
    LANGUAGE sql STABLE
    SET search_path TO ''
    AS $$
  select sha256(convert_to(
    audit.netstring('onbrand-audit-1') || audit.netstring(e.brand_id) || audit.netstring(e.seq::text)
    || audit.netstring(to_char(e.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || audit.netstring(e.actor) || audit.netstring(e.user_id::text) || audit.netstring(e.credential)
    || audit.netstring(e.action) || audit.netstring(e.detail::text) || audit.netstring(encode(e.prev, 'hex')), 'utf8'))
$$;

ALTER FUNCTION audit.event_hash(e audit.events) OWNER TO onbrand_owner;

CREATE FUNCTION audit.netstring(value text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO ''
    AS $$
  select coalesce(octet_length(value)::text || ':' || value, '~') || ','
$$;

ALTER FUNCTION audit.netstring(value text) OWNER TO onbrand_owner;

CREATE FUNCTION audit.tg_append_only() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if tg_op = 'INSERT' and current_user = 'onbrand_definer' then return new; end if;
  raise exception 'the record is append-only' using errcode = '42501';
end $$;

ALTER FUNCTION audit.tg_append_only() OWNER TO onbrand_owner;

CREATE FUNCTION private.accept_invitation(id uuid, hash text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare invited record;
begin
  select * into invited from private.find_invitation(accept_invitation.id, accept_invitation.hash);
  if not found then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', invited.brand_id));
  perform 1 from app.brand_users bu
    where bu.brand_id = invited.brand_id and bu.user_id = invited.user_id and bu.role = 'admin' for share;
  if not found then return null; end if;
  update app.invitations i set accepted_at = clock_timestamp(), accepted_by = private.uid()
    where i.brand_id = invited.brand_id and i.id = accept_invitation.id
      and i.accepted_at is null and i.revoked_at is null and i.expires_at > clock_timestamp();
  if not found then return null; end if;
  insert into app.brand_users (brand_id, user_id, role) values (invited.brand_id, private.uid(), invited.role)
    on conflict do nothing;
  perform private.audit_append(invited.brand_id, 'user', private.uid(), null, 'invitation.accept',
    jsonb_build_object('invitation_id', accept_invitation.id));
  return invited.brand_id;
end $$;

ALTER FUNCTION private.accept_invitation(id uuid, hash text) OWNER TO onbrand_definer;

CREATE FUNCTION private.account_has_room(brand text, n integer, max_waiting integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  account uuid;
begin
  if not coalesce(private.may_act_in(brand), false) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  select o.user_id into account from app.brands o where o.id = brand;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('admission-of', account::text));
  return n <= max_waiting - (
    select coalesce(sum(g.num_images - (select count(*) from app.generated_images i
      where i.brand_id = g.brand_id and i.generation_id = g.id)), 0)
    from app.brands o join app.generations g on g.brand_id = o.id
    where uuid_send(o.user_id) = uuid_send(account) and g.status in ('pending', 'running'));
end $$;

ALTER FUNCTION private.account_has_room(brand text, n integer, max_waiting integer) OWNER TO onbrand_definer;

CREATE FUNCTION private.audit_append(brand text, actor text, action text, detail jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform private.audit_append(brand, 'system', null, substr(actor, char_length('system:') + 1), action, detail);
end $$;

ALTER FUNCTION private.audit_append(brand text, actor text, action text, detail jsonb) OWNER TO onbrand_definer;

CREATE FUNCTION private.audit_append(brand text, actor text, user_id uuid, credential text, action text, detail jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare e audit.events;
begin
  e.brand_id := brand; e.actor := audit_append.actor; e.user_id := audit_append.user_id;
  e.credential := audit_append.credential; e.action := action; e.detail := coalesce(detail, '{}');
  if not coalesce(audit.is_valid_detail(e.detail) and audit.has_object_id(action, e.detail), false) then
    raise exception 'the line is not plain, or names no object' using errcode = 'OB009';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('audit', brand));
  select l.seq + 1, l.hash into e.seq, e.prev from audit.events l where l.brand_id = brand order by l.seq desc limit 1;
  e.seq := coalesce(e.seq, 1);
  e.at := clock_timestamp();
  e.hash := audit.event_hash(e);
  insert into audit.events select e.*;
end $$;

ALTER FUNCTION private.audit_append(brand text, actor text, user_id uuid, credential text, action text, detail jsonb) OWNER TO onbrand_definer;

CREATE FUNCTION private.change_name(subject uuid) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select private.lock_key('change', subject::text)::text where private.claims() is not null
$$;

ALTER FUNCTION private.change_name(subject uuid) OWNER TO onbrand_definer;

CREATE FUNCTION private.claimed_brand_id() RETURNS text
    LANGUAGE sql STABLE
    RETURN split_part(current_setting('request.scope'::text, true), '|'::text, 4);

ALTER FUNCTION private.claimed_brand_id() OWNER TO onbrand_definer;

CREATE FUNCTION private.claimed_brand_object() RETURNS jsonb
    LANGUAGE sql STABLE
    RETURN jsonb_build_object(COALESCE(private.claimed_brand_id(), ''::text), true);

ALTER FUNCTION private.claimed_brand_object() OWNER TO onbrand_definer;

CREATE FUNCTION private.claimed_caller_object() RETURNS jsonb
    LANGUAGE sql STABLE
    RETURN jsonb_build_object(COALESCE(((((private.claimed_brand_id() || ' '::text) || split_part(current_setting('request.scope'::text, true), '|'::text, 5)) || ' '::text) || CASE split_part(current_setting('request.scope'::text, true), '|'::text, 7) WHEN 'key'::text THEN split_part(current_setting('request.scope'::text, true), '|'::text, 8) ELSE ''::text END), ''::text), true);

ALTER FUNCTION private.claimed_caller_object() OWNER TO onbrand_definer;

CREATE FUNCTION private.claims() RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare claims text := nullif(current_setting('request.jwt.claims', true), '');
begin
  if claims is null or not private.is_signed(current_setting('request.scope', true), claims) then return null; end if;
  return claims::jsonb;
end $$;

ALTER FUNCTION private.claims() OWNER TO onbrand_definer;

CREATE FUNCTION private.credentials_name() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select private.lock_key('credentials', private.claimed_brand_id())::text where private.claims() is not null
$$;

ALTER FUNCTION private.credentials_name() OWNER TO onbrand_definer;

CREATE FUNCTION private.ctx(name text) RETURNS text
    LANGUAGE sql STABLE
    RETURN (private.claims() ->> name);

ALTER FUNCTION private.ctx(name text) OWNER TO onbrand_definer;

CREATE FUNCTION private.decline_invitation(id uuid, hash text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare invited record;
begin
  select * into invited from private.find_invitation(decline_invitation.id, decline_invitation.hash);
  if not found then return null; end if;
  update app.invitations i set revoked_at = clock_timestamp(), declined = true
    where i.brand_id = invited.brand_id and i.id = decline_invitation.id
      and i.accepted_at is null and i.revoked_at is null and i.expires_at > clock_timestamp();
  if not found then return null; end if;
  perform private.audit_append(invited.brand_id, 'user', private.uid(), null, 'invitation.decline',
    jsonb_build_object('invitation_id', decline_invitation.id));
  return invited.brand_id;
end $$;

ALTER FUNCTION private.decline_invitation(id uuid, hash text) OWNER TO onbrand_definer;

CREATE FUNCTION private.email_of(user_id uuid) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.email from identity.users u where u.id = email_of.user_id
$$;

ALTER FUNCTION private.email_of(user_id uuid) OWNER TO onbrand_identity;

CREATE FUNCTION private.end_orphaned() RETURNS TABLE(kind text, brand_id text, job_id uuid, provider text, provider_job_id text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  orphan record;
  reason jsonb;
begin
  perform private.must_be_signed();
  for orphan in
    select j.id, j.brand_id, j.provider, j.provider_job_id from app.lora_training_jobs j
    where j.status in ('pending', 'training') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = j.brand_id and bu.user_id = j.user_id)
    order by j.created_at for update of j skip locked
  loop
    reason := jsonb_build_object('code', 'member_removed', 'message',
      'whoever started this job is no longer a member of the brand; a member may retry it in their own name');
    update app.lora_training_jobs j set status = 'failed', error = reason, completed_at = now()
      where j.brand_id = orphan.brand_id and j.id = orphan.id;
    insert into app.job_events (brand_id, job_id, seq, kind, data)
      select orphan.brand_id, orphan.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', reason)
      from app.job_events e where e.brand_id = orphan.brand_id and e.subject_id = orphan.id;
    perform private.audit_append(orphan.brand_id, 'system:' || orphan.id, 'job.fail',
      jsonb_build_object('job_id', orphan.id, 'code', 'member_removed'));
    return query select 'training'::text, orphan.brand_id, orphan.id, orphan.provider, orphan.provider_job_id;
  end loop;
  for orphan in
    select g.id, g.brand_id from app.generations g
    where g.status in ('pending', 'running') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = g.brand_id and bu.user_id = g.user_id)
    order by g.created_at for update of g skip locked
  loop
    reason := jsonb_build_object('code', 'member_removed', 'message',
      'whoever asked for these pictures is no longer a member of the brand; ask for them again');
    update app.generations g set status = 'failed', error = reason, completed_at = now()
      where g.brand_id = orphan.brand_id and g.id = orphan.id;
    insert into app.job_events (brand_id, generation_id, seq, kind, data)
      select orphan.brand_id, orphan.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', reason)
      from app.job_events e where e.brand_id = orphan.brand_id and e.subject_id = orphan.id;
    perform private.audit_append(orphan.brand_id, 'system:' || orphan.id, 'generation.fail',
      jsonb_build_object('generation_id', orphan.id, 'code', 'member_removed'));
    return query select 'generation'::text, orphan.brand_id, orphan.id, null::text, null::text;
  end loop;
end $$;

ALTER FUNCTION private.end_orphaned() OWNER TO onbrand_definer;

CREATE FUNCTION private.end_sessions(session_id uuid) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    AS $$
  with ended as (
    update identity.sessions s set ended_at = statement_timestamp()
    where private.is_unrestricted() and s.user_id = private.uid() and s.ended_at is null
      and (end_sessions.session_id is null or s.id = end_sessions.session_id)
    returning 1)
  select count(*)::integer from ended
$$;

ALTER FUNCTION private.end_sessions(session_id uuid) OWNER TO onbrand_identity;

CREATE FUNCTION private.external_user(issuer text, subject text, email text) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare account_id uuid;
begin
  perform private.must_be_requested('external_user', issuer, subject, email);
  select s.user_id into account_id from identity.subjects s
    where s.issuer = external_user.issuer and s.subject = external_user.subject;
  if account_id is not null then
    update identity.users u set email = lower(external_user.email), email_verified_at = clock_timestamp()
      where external_user.email is not null and u.id = account_id and u.email_verified_at is null
        and (u.email = lower(external_user.email) or (u.email is null
          and not exists (select 1 from identity.users o where o.email = lower(external_user.email))));
    return account_id;
  end if;
  begin
    insert into identity.users as u (email, email_verified_at)
      values (lower(external_user.email), case when external_user.email is not null then clock_timestamp() end)
      returning u.id into account_id;
    insert into identity.subjects (issuer, subject, user_id)
      values (external_user.issuer, external_user.subject, account_id);
  exception when unique_violation then
    select s.user_id into account_id from identity.subjects s
      where s.issuer = external_user.issuer and s.subject = external_user.subject;
    if account_id is null then raise; end if;
  end;
  return account_id;
end $$;

ALTER FUNCTION private.external_user(issuer text, subject text, email text) OWNER TO onbrand_identity;

CREATE FUNCTION private.find_invitation(id uuid, hash text) RETURNS TABLE(brand_id text, user_id uuid, role text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  address text := case when hash is null then private.my_verified_email() else private.my_email() end;
begin
  if not private.is_unrestricted() or not private.is_credential_valid() then
    raise exception 'no invitation for this credential' using errcode = '42501';
  end if;
  return query select i.brand_id, i.user_id, i.role from app.invitations i
    where uuid_send(i.id) = uuid_send(find_invitation.id) and i.email = address
      and (find_invitation.hash is null or i.hash = find_invitation.hash);
end $$;

ALTER FUNCTION private.find_invitation(id uuid, hash text) OWNER TO onbrand_definer;

CREATE FUNCTION private.find_key(id uuid, hash text) RETURNS TABLE(brand_id text, user_id uuid, scopes text[])
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    AS $$
  update app.api_keys k set last_used_at = statement_timestamp()
  where private.claims() is not null and uuid_send(k.id) = uuid_send(find_key.id) and k.hash = find_key.hash
    and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp())
    and (k.last_used_at is null or k.last_used_at < statement_timestamp() - interval '1 minute');
  select k.brand_id, k.user_id, k.scopes from app.api_keys k
  where private.claims() is not null and uuid_send(k.id) = uuid_send(find_key.id) and k.hash = find_key.hash
    and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp())
    and exists (select 1 from app.brand_users bu where bu.brand_id = k.brand_id and bu.user_id = k.user_id)
$$;

ALTER FUNCTION private.find_key(id uuid, hash text) OWNER TO onbrand_definer;

CREATE FUNCTION private.find_login(email text) RETURNS TABLE(id uuid, password_hash text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform private.must_be_requested('find_login', lower(find_login.email));
  return query select u.id, u.password_hash from identity.users u where u.email = lower(find_login.email);
end $$;

ALTER FUNCTION private.find_login(email text) OWNER TO onbrand_identity;

CREATE FUNCTION private.find_session(hash text) RETURNS TABLE(id uuid, user_id uuid, expires_at timestamp with time zone)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    AS $$
  update identity.sessions s set last_seen_at = statement_timestamp()
  where private.claims() is not null and s.hash = find_session.hash and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
    and s.last_seen_at < statement_timestamp() - least(interval '1 minute', s.idle / 4);
  select s.id, s.user_id, s.expires_at from identity.sessions s
  where private.claims() is not null and s.hash = find_session.hash and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
$$;

ALTER FUNCTION private.find_session(hash text) OWNER TO onbrand_identity;

CREATE FUNCTION private.give_attempt_back(keys text[], max_attempts integer[], seconds integer[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    AS $$
  update identity.attempts a set due = a.due - make_interval(secs => b.seconds::double precision / b.max_attempts)
  from (select t.key, t.max_attempts, t.seconds
    from unnest(give_attempt_back.keys, give_attempt_back.max_attempts, give_attempt_back.seconds)
      as t (key, max_attempts, seconds)) b
  where private.claims() is not null and a.key = b.key
$$;

ALTER FUNCTION private.give_attempt_back(keys text[], max_attempts integer[], seconds integer[]) OWNER TO onbrand_identity;

CREATE FUNCTION private.has_all_scopes() RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (NOT COALESCE((private.claims() ?| ARRAY['key_id'::text, 'scopes'::text]), true));

ALTER FUNCTION private.has_all_scopes() OWNER TO onbrand_definer;

CREATE FUNCTION private.has_scope(scope text) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare c jsonb := private.claims();
begin
  if c is null then return false; end if;
  if not c ?| array['key_id', 'session_id', 'scopes'] then return true; end if;  -- a token without scopes
  if c ->> 'scopes' is not null and not c -> 'scopes' ? has_scope.scope then return false; end if;
  if c ? 'session_id' then
    return exists (select 1 from identity.sessions s
      where s.id = (c ->> 'session_id')::uuid and s.user_id = (c ->> 'sub')::uuid and not c ? 'key_id'
        and private.is_session_valid(s.ended_at, s.expires_at, s.last_seen_at, s.idle, clock_timestamp()));
  end if;
  if c ? 'key_id' then
    return exists (select 1 from app.api_keys k
      where k.brand_id = c ->> 'brand_id' and k.id = (c ->> 'key_id')::uuid and k.user_id = (c ->> 'sub')::uuid
        and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp()) and has_scope.scope = any (k.scopes));
  end if;
  return true;
end $$;

ALTER FUNCTION private.has_scope(scope text) OWNER TO onbrand_definer;

CREATE FUNCTION private.has_valid_session(session_id uuid, user_id uuid) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  return exists (select 1 from identity.sessions s where s.id = has_valid_session.session_id
    and s.user_id = has_valid_session.user_id and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp());
end $$;

ALTER FUNCTION private.has_valid_session(session_id uuid, user_id uuid) OWNER TO onbrand_identity;

CREATE FUNCTION private.my_role() RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  scope text := current_setting('request.scope', true);
  field text[] := string_to_array(scope, '|');
  key_id text := field[1]; stamp text := field[2]; signed_role text := field[3];
  brand text := field[4]; caller_id uuid := nullif(field[5], ''); bound_to text := field[6];
  credential text := field[7]; credential_id uuid := nullif(field[8], ''); required_scope text := field[9];
  claimed_scopes text := field[10];
  inner_pad bytea; outer_pad bytea; scopes text[]; found_role text;
begin
  if brand = '' or (bound_to <> '' and bound_to <> brand) then return null; end if;
  select k.inner_pad, k.outer_pad into inner_pad, outer_pad from private.claim_keys k where k.id = key_id;
  if encode(sha256(outer_pad || sha256(inner_pad || convert_to(
      scope || chr(10) || current_setting('request.jwt.claims', true), 'UTF8'))), 'hex')
    is distinct from current_setting('request.claims_signature', true) then return null; end if;
  if signed_role <> current_setting('role', true)
     or stamp <> pg_backend_pid()::text || ' ' || extract(epoch from transaction_timestamp())::text then
    return null;
  end if;
  if credential = 'key' then
    select k.scopes into scopes from app.api_keys k
      where k.brand_id = brand and k.id = credential_id and k.user_id = caller_id
        and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp());
    if not coalesce(required_scope = any (scopes), false)
       or (claimed_scopes <> '' and not required_scope = any (string_to_array(claimed_scopes, ','))) then
      return null;
    end if;
  elsif credential = 'session' then
    perform 1 from identity.sessions s
      where s.id = credential_id and s.user_id = caller_id
        and private.is_session_valid(s.ended_at, s.expires_at, s.last_seen_at, s.idle, clock_timestamp());
    if not found then return null; end if;
  elsif credential <> '' then
    return null;
  end if;
  select bu.role into found_role from app.brand_users bu where bu.brand_id = brand and bu.user_id = caller_id;
  return found_role;
end $$;

ALTER FUNCTION private.my_role() OWNER TO onbrand_definer;

CREATE FUNCTION private.is_admin() RETURNS boolean
    LANGUAGE sql STABLE
    RETURN COALESCE(((private.my_role() = 'admin'::text) AND ((split_part(current_setting('request.scope'::text, true), '|'::text, 7) <> 'key'::text) OR private.has_scope('manage'::text))), false);

ALTER FUNCTION private.is_admin() OWNER TO onbrand_definer;

CREATE FUNCTION private.is_credential_valid() RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  c jsonb := private.claims();
begin
  if c is null then return false; end if;
  if c ->> 'key_id' is not null then  -- nested, so that most calls run no query
    if not exists (select 1 from app.api_keys k
        where k.id = (c ->> 'key_id')::uuid and k.brand_id = c ->> 'brand_id'
          and k.user_id = (c ->> 'sub')::uuid and k.revoked_at is null
          and (k.expires_at is null or k.expires_at > clock_timestamp())) then
      return false;
    end if;
  end if;
  return c ->> 'session_id' is null or private.has_valid_session((c ->> 'session_id')::uuid, (c ->> 'sub')::uuid);
end $$;

ALTER FUNCTION private.is_credential_valid() OWNER TO onbrand_definer;

CREATE FUNCTION private.is_key_valid(revoked_at timestamp with time zone, expires_at timestamp with time zone, at timestamp with time zone) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    RETURN ((revoked_at IS NULL) AND (COALESCE(expires_at, 'infinity'::timestamp with time zone) > at));

ALTER FUNCTION private.is_key_valid(revoked_at timestamp with time zone, expires_at timestamp with time zone, at timestamp with time zone) OWNER TO onbrand_definer;

CREATE FUNCTION private.is_session_valid(ended_at timestamp with time zone, expires_at timestamp with time zone, last_seen_at timestamp with time zone, idle interval, at timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN ((ended_at IS NULL) AND (LEAST(expires_at, (last_seen_at + idle)) > at));

ALTER FUNCTION private.is_session_valid(ended_at timestamp with time zone, expires_at timestamp with time zone, last_seen_at timestamp with time zone, idle interval, at timestamp with time zone) OWNER TO onbrand_definer;

CREATE FUNCTION private.is_signed(scope text, claims text) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  field text[] := string_to_array(scope, '|');
  signature text;
begin
  select encode(sha256(k.outer_pad || sha256(k.inner_pad || convert_to(scope || chr(10) || claims, 'UTF8'))), 'hex')
    into signature from private.claim_keys k where k.id = field[1];
  return coalesce(signature = current_setting('request.claims_signature', true)
    and field[3] = current_setting('role', true) and field[2] = private.transaction_stamp(), false);
end $$;

ALTER FUNCTION private.is_signed(scope text, claims text) OWNER TO onbrand_definer;

CREATE FUNCTION private.is_unrestricted() RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select private.uid() is not null
    and num_nonnulls(private.ctx('bound_to'), private.ctx('key_id'), private.ctx('scopes')) = 0
$$;

ALTER FUNCTION private.is_unrestricted() OWNER TO onbrand_identity;

CREATE FUNCTION private.lead(holder uuid, seconds double precision) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform private.must_be_signed();
  insert into app.dispatch_lease as l (holder, until)
    values (lead.holder, clock_timestamp() + make_interval(secs => least(greatest(seconds, 0), 60)))
    on conflict (one) do update set holder = excluded.holder, until = excluded.until
      where l.holder = excluded.holder or l.until <= clock_timestamp();
  return found;
end $$;

ALTER FUNCTION private.lead(holder uuid, seconds double precision) OWNER TO onbrand_definer;

CREATE FUNCTION private.leave_brand(brand text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if not coalesce(private.may_act_in(brand), false) or not private.has_scope('manage') then
    raise exception 'no membership to end' using errcode = '42501';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', brand));
  perform 1 from app.brand_users bu where bu.brand_id = brand and bu.user_id = private.uid() for update;
  perform private.audit_append(brand, case when private.ctx('key_id') is null then 'user' else 'key' end,
    private.uid(), private.ctx('key_id'), 'member.remove', jsonb_build_object('user_id', private.uid()));
  delete from app.brand_users bu where bu.brand_id = brand and bu.user_id = private.uid();
  return found;
end $$;

ALTER FUNCTION private.leave_brand(brand text) OWNER TO onbrand_definer;

CREATE FUNCTION private.link_subject(issuer text, subject text, email text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform private.must_be_requested('link_subject', issuer, subject, email);
  if not private.is_unrestricted() then
    raise exception 'no link with this credential' using errcode = '42501';
  end if;
  insert into identity.subjects (issuer, subject, user_id)
    values (link_subject.issuer, link_subject.subject, private.uid());
  update identity.users u set email_verified_at = clock_timestamp()
    where u.id = private.uid() and u.email = lower(link_subject.email) and u.email_verified_at is null;
end $$;

ALTER FUNCTION private.link_subject(issuer text, subject text, email text) OWNER TO onbrand_identity;

CREATE FUNCTION private.lock_admin(brand text, admin_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform 1 from app.brand_users bu where bu.brand_id = brand and bu.user_id = admin_id and bu.role = 'admin' for share;
  if not found then
    raise exception 'no admin of this brand any more' using errcode = '42501';
  end if;
end $$;

ALTER FUNCTION private.lock_admin(brand text, admin_id uuid) OWNER TO onbrand_definer;

CREATE FUNCTION private.lock_brand(kind text, brand text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if kind not in ('admission', 'training', 'members', 'metadata', 'uploads') then
    raise exception 'no such lock' using errcode = '22023';
  end if;
  if coalesce(private.may_act_in(brand), false) then
    perform pg_catalog.pg_advisory_xact_lock(private.lock_key(kind, brand));
  end if;
end $$;

ALTER FUNCTION private.lock_brand(kind text, brand text) OWNER TO onbrand_definer;

CREATE FUNCTION private.lock_key(kind text, id text) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select pg_catalog.hashtextextended(kind || ':' || id, s.seed) from private.lock_seed s
$$;

ALTER FUNCTION private.lock_key(kind text, id text) OWNER TO onbrand_definer;

CREATE FUNCTION private.may_act_in(brand text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select case current_setting('role', true)
    when 'authenticated' then brand = private.my_brand()
    when 'brand_system' then brand = private.ticket_brand()
    else false end
$$;

ALTER FUNCTION private.may_act_in(brand text) OWNER TO onbrand_definer;

CREATE FUNCTION private.may_record(action text) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $_$
begin
  if action ~ '^(job\.(start|sample|fail|submit|canceled)|generation\.(start|fail|complete|canceled)|model\.publish|image\.store'
      '|upload\.expire|brand\.set_limits|invitation\.(accept|decline))$' then
    return false;
  end if;
  if action ~ '^(key|member)\.|^invitation\.|^brand\.create$|^(asset|document|model|job)\.delete$' then
    return private.is_admin();
  end if;
  return true;
end $_$;

ALTER FUNCTION private.may_record(action text) OWNER TO onbrand_definer;

CREATE FUNCTION private.me() RETURNS TABLE(id uuid, email text, email_verified boolean, created_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.id, u.email, u.email_verified_at is not null, u.created_at
  from identity.users u where u.id = private.uid()
$$;

ALTER FUNCTION private.me() OWNER TO onbrand_identity;

CREATE FUNCTION private.member_emails(brand text) RETURNS TABLE(user_id uuid, email text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.id, u.email from identity.users u join app.brand_users bu on bu.user_id = u.id where bu.brand_id = brand
$$;

ALTER FUNCTION private.member_emails(brand text) OWNER TO onbrand_identity;

CREATE FUNCTION private.must_be_requested(VARIADIC requested text[]) RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if private.claims() -> 'asks' is distinct from to_jsonb(requested) then
    raise exception 'the platform did not ask for this' using errcode = '42501';
  end if;
end $$;

ALTER FUNCTION private.must_be_requested(VARIADIC requested text[]) OWNER TO onbrand_definer;

CREATE FUNCTION private.must_be_signed() RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if private.claims() is null then
    raise exception 'the platform did not sign these claims' using errcode = '42501';
  end if;
end $$;

ALTER FUNCTION private.must_be_signed() OWNER TO onbrand_definer;

CREATE FUNCTION private.my_brand() RETURNS text
    LANGUAGE sql STABLE
    RETURN CASE WHEN (private.my_role() IS NOT NULL) THEN private.claimed_brand_id() ELSE NULL::text END;

ALTER FUNCTION private.my_brand() OWNER TO onbrand_definer;

CREATE FUNCTION private.my_brands(after text, n integer) RETURNS TABLE(id text, name text, home_region text, role text, created_at timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  c jsonb := private.claims();
  bound_to text := c ->> 'bound_to';
begin
  if c is null or (bound_to is null and not private.is_credential_valid())
     or (bound_to is not null and private.my_role() is null) then return; end if;
  return query
    select b.id, b.name, b.home_region, bu.role, b.created_at
    from app.brand_users bu join app.brands b on b.id = bu.brand_id
    where uuid_send(bu.user_id) = uuid_send((c ->> 'sub')::uuid) and bu.brand_id > coalesce(my_brands.after, '')
      and (bound_to is null or bu.brand_id = bound_to)
    order by bu.brand_id limit my_brands.n;
end $$;

ALTER FUNCTION private.my_brands(after text, n integer) OWNER TO onbrand_definer;

CREATE FUNCTION private.my_caller() RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare c jsonb := private.claims();
begin
  if c ? 'brand_id' then
    return private.my_brand() || ' ' || (c ->> 'sub') || ' ' || coalesce(c ->> 'key_id', '');
  end if;
  if private.is_credential_valid() then return ' ' || (c ->> 'sub') || ' ' || coalesce(c ->> 'key_id', ''); end if;
  return null;
end $$;

ALTER FUNCTION private.my_caller() OWNER TO onbrand_definer;

CREATE FUNCTION private.my_email() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.email from identity.users u where u.id = private.uid()
$$;

ALTER FUNCTION private.my_email() OWNER TO onbrand_identity;

CREATE FUNCTION private.my_invitations(at timestamp with time zone, after uuid, max_rows integer) RETURNS TABLE(id uuid, brand_id text, role text, created_at timestamp with time zone, expires_at timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare address text := private.my_verified_email();
begin
  if address is null or not private.is_unrestricted() or not private.is_credential_valid() then return; end if;
  return query select i.id, i.brand_id, i.role, i.created_at, i.expires_at from app.invitations i
    where reverse(i.email) = reverse(address) and i.accepted_at is null and i.revoked_at is null
      and i.expires_at > statement_timestamp()
      and (my_invitations.at is null or (i.created_at, i.id) < (my_invitations.at, my_invitations.after))
    order by i.created_at desc, i.id desc limit least(max_rows, 101);
end $$;

ALTER FUNCTION private.my_invitations(at timestamp with time zone, after uuid, max_rows integer) OWNER TO onbrand_definer;

CREATE FUNCTION private.my_models(families text[], after_brand text, after_base boolean, after_age numeric, after_name text, n integer) RETURNS TABLE(brand_id text, is_base boolean, age numeric, name text, created_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select x.brand_id, x.is_base, x.age, x.name, x.created_at from (
    select b.id as brand_id, false as is_base, -extract(epoch from m.created_at) as age, m.name, m.created_at
    from private.my_brands(null, null) b join app.models m on m.brand_id = b.id
    union all
    select b.id, true, f.at, f.name, null
    from private.my_brands(null, null) b cross join unnest(my_models.families) with ordinality f (name, at)
  ) x
  where my_models.after_brand is null or (x.brand_id, x.is_base, x.age, x.name)
    > (my_models.after_brand, my_models.after_base, my_models.after_age, my_models.after_name)
  order by x.brand_id, x.is_base, x.age, x.name limit least(my_models.n, 1001)
$$;

ALTER FUNCTION private.my_models(families text[], after_brand text, after_base boolean, after_age numeric, after_name text, n integer) OWNER TO onbrand_definer;

CREATE FUNCTION private.my_sessions() RETURNS TABLE(id uuid, created_at timestamp with time zone, last_seen_at timestamp with time zone, expires_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select s.id, s.created_at, s.last_seen_at, s.expires_at from identity.sessions s
  where private.is_unrestricted() and s.user_id = private.uid() and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
  order by s.created_at desc, s.id
$$;

ALTER FUNCTION private.my_sessions() OWNER TO onbrand_identity;

CREATE FUNCTION private.my_verified_email() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.email from identity.users u where u.id = private.uid() and u.email_verified_at is not null
$$;

ALTER FUNCTION private.my_verified_email() OWNER TO onbrand_identity;

CREATE FUNCTION private.next_number(brand text, series_name text, n integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $_$
declare taken bigint;
begin
  if not coalesce(private.may_act_in(brand), false) or n not between 1 and 500
     or (current_setting('role', true) = 'authenticated' and not coalesce(
       series_name ~ '^asset:(logo|product|person|packaging|other)$' or series_name ~ '^document:', false)) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  insert into app.numbers as c (brand_id, series, last) values (brand, series_name, n)
  on conflict (brand_id, series) do update set last = c.last + excluded.last
  returning c.last into taken;
  return taken - n + 1;
end $_$;

ALTER FUNCTION private.next_number(brand text, series_name text, n integer) OWNER TO onbrand_definer;

CREATE FUNCTION private.num_open_uploads() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('uploads-of', private.uid()::text));
  return (select count(*)::integer from app.uploads u
    where uuid_send(u.user_id) = uuid_send(private.uid()) and u.status = 'pending');
end $$;

ALTER FUNCTION private.num_open_uploads() OWNER TO onbrand_definer;

CREATE FUNCTION private.open_session(hash text, idle interval, life interval) RETURNS TABLE(id uuid, expires_at timestamp with time zone)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform private.must_be_requested('open_session', hash);
  if not private.is_unrestricted() or private.ctx('session_id') is not null
     or open_session.life > interval '31 days' then
    raise exception 'no session for this credential' using errcode = '42501';
  end if;
  delete from identity.sessions s where s.user_id = private.uid() and s.expires_at < clock_timestamp();
  return query insert into identity.sessions as s (user_id, hash, idle, expires_at)
    values (private.uid(), open_session.hash, open_session.idle, clock_timestamp() + open_session.life)
    returning s.id, s.expires_at;
end $$;

ALTER FUNCTION private.open_session(hash text, idle interval, life interval) OWNER TO onbrand_identity;

CREATE FUNCTION private.queue() RETURNS TABLE(kind text, brand_id text, job_id uuid, user_id uuid, status text, provider text, provider_job_id text, attempts integer, cancel_requested boolean, heartbeat_at timestamp with time zone, created_at timestamp with time zone, num_workers integer, waiting_for text, waiting_since timestamp with time zone, weight double precision, max_running integer, account_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select 'training', j.brand_id, j.id, j.user_id, j.status, j.provider, j.provider_job_id, j.attempts,
    j.cancel_requested_at is not null, j.heartbeat_at, j.created_at, j.num_workers, j.waiting_for, j.waiting_since,
    coalesce(l.weight, 1), l.max_running_trainings, b.user_id
  from app.lora_training_jobs j join app.brands b on b.id = j.brand_id
    left join app.brand_limits l on l.brand_id = j.brand_id
  where private.claims() is not null and j.status in ('pending', 'training')
  union all
  select 'generation', g.brand_id, g.id, g.user_id, g.status, null, null, 0,
    g.cancel_requested_at is not null, g.heartbeat_at, g.created_at, 0, null, null, 1, null, b.user_id
  from app.generations g join app.brands b on b.id = g.brand_id
  where private.claims() is not null and g.status in ('pending', 'running')
  order by created_at
$$;

ALTER FUNCTION private.queue() OWNER TO onbrand_definer;

CREATE FUNCTION private.record(brand text, action text, detail jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if not coalesce(private.may_act_in(brand), false) then
    raise exception 'no record of this brand' using errcode = '42501';
  end if;
  if current_setting('role', true) = 'brand_system' then
    perform private.audit_append(brand, 'system', private.ctx('on_behalf_of')::uuid, private.ctx('job_id'), action,
      detail);
    return;
  end if;
  if not private.may_record(action) then
    raise exception 'this is not for the caller to record' using errcode = '42501';
  end if;
  perform private.audit_append(brand, case when private.ctx('key_id') is null then 'user' else 'key' end,
    private.uid(), private.ctx('key_id'), action, detail);
end $$;

ALTER FUNCTION private.record(brand text, action text, detail jsonb) OWNER TO onbrand_definer;

CREATE FUNCTION private.sign_up(email text, password_hash text) RETURNS TABLE(id uuid, created_at timestamp with time zone)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform private.must_be_requested('sign_up', lower(sign_up.email));
  return query insert into identity.users as u (email, password_hash)
    values (lower(sign_up.email), sign_up.password_hash) returning u.id, u.created_at;
end $$;

ALTER FUNCTION private.sign_up(email text, password_hash text) OWNER TO onbrand_identity;

CREATE FUNCTION private.stored_bytes(brand text) RETURNS TABLE(of_brand bigint, of_caller bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if not coalesce(private.may_act_in(brand), false) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  return query select
    coalesce((select u.bytes from app.brand_usage u where u.brand_id = brand), 0),
    coalesce((select u.bytes from app.caller_usage u
      where u.user_id = coalesce(private.ctx('on_behalf_of'), private.ctx('sub'))::uuid), 0);
end $$;

ALTER FUNCTION private.stored_bytes(brand text) OWNER TO onbrand_definer;

CREATE FUNCTION private.sweep_uploads() RETURNS TABLE(brand_id text, upload_id uuid, kind text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare old record;
begin
  perform private.must_be_signed();
  for old in
    select u.id, u.brand_id, u.kind, u.status, u.expires_at < clock_timestamp() - interval '1 day' as is_old
    from app.uploads u
    where u.expires_at at time zone 'UTC' < (clock_timestamp() - interval '1 hour') at time zone 'UTC'
      and (u.swept_at is null or u.expires_at < clock_timestamp() - interval '1 day')
    order by u.expires_at at time zone 'UTC' limit 200 for update of u skip locked
  loop
    if old.status = 'pending' then
      update app.uploads u set status = 'expired', ended_at = clock_timestamp()
        where u.brand_id = old.brand_id and u.id = old.id;
      perform private.audit_append(old.brand_id, 'system:' || old.id, 'upload.expire',
        jsonb_build_object('upload_id', old.id));
    end if;
    if old.is_old then
      delete from app.uploads u where u.brand_id = old.brand_id and u.id = old.id;
    else
      update app.uploads u set swept_at = clock_timestamp() where u.brand_id = old.brand_id and u.id = old.id;
    end if;
    return query select old.brand_id, old.id, old.kind;
  end loop;
end $$;

ALTER FUNCTION private.sweep_uploads() OWNER TO onbrand_definer;

CREATE FUNCTION private.take_attempt(keys text[], max_attempts integer[], seconds integer[]) RETURNS double precision
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  at timestamptz;
  until timestamptz;
  dues timestamptz[] := '{}';
  step interval;
  wait double precision := 0;
begin
  perform private.must_be_signed();
  if cardinality(keys) not between 1 and 4 or cardinality(max_attempts) <> cardinality(keys)
      or cardinality(seconds) <> cardinality(keys) or 1 > any (max_attempts) or 1 > any (seconds)
      or 86400 < any (seconds) then
    raise exception 'a bucket has a key, a number and a time' using errcode = '22023';
  end if;
  for n in 1 .. cardinality(keys) loop
    insert into identity.attempts as a (key, due) values (keys[n], clock_timestamp())
      on conflict (key) do update set due = a.due returning a.due into until;
    at := clock_timestamp();
    step := make_interval(secs => seconds[n]::double precision / max_attempts[n]);
    until := least(greatest(until, at), at + make_interval(secs => seconds[n]));  -- a bucket is full after its period
    wait := greatest(wait, extract(epoch from until - at - (max_attempts[n] - 1) * step));
    dues := dues || (until + step);
  end loop;
  if wait > 0 then return wait; end if;
  for n in 1 .. cardinality(keys) loop
    update identity.attempts a set due = dues[n] where a.key = keys[n];
  end loop;
  delete from identity.attempts a where a.key in (
    select b.key from identity.attempts b where b.due < clock_timestamp() order by b.due limit 8
    for update skip locked);
  return 0;
end $$;

ALTER FUNCTION private.take_attempt(keys text[], max_attempts integer[], seconds integer[]) OWNER TO onbrand_identity;

CREATE FUNCTION private.tg_actor_is_admin() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if old.user_id is distinct from private.uid() then
    perform private.lock_admin(old.brand_id, private.uid());
  end if;
  return null;
end $$;

ALTER FUNCTION private.tg_actor_is_admin() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_add_first_admin() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  insert into app.brand_users (brand_id, user_id, role) values (new.id, new.user_id, 'admin');
  return null;
end $$;

ALTER FUNCTION private.tg_add_first_admin() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_announce_credentials() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform pg_catalog.pg_notify('onbrand_changes', private.lock_key('credentials', old.brand_id)::text);
  return null;
end $$;

ALTER FUNCTION private.tg_announce_credentials() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_announce_event() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform pg_catalog.pg_notify('onbrand_changes', private.lock_key('change', new.subject_id::text)::text);
  return null;
end $$;

ALTER FUNCTION private.tg_announce_event() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_announce_queue() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform pg_catalog.pg_notify('onbrand_changes', 'queue');
  return null;
end $$;

ALTER FUNCTION private.tg_announce_queue() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_count_bytes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare o record; n bigint;
begin
  if tg_op = 'DELETE' then o := old; n := -old.bytes; else o := new; n := new.bytes; end if;
  insert into app.brand_usage as u (brand_id, bytes) values (o.brand_id, n)
    on conflict (brand_id) do update set bytes = u.bytes + excluded.bytes;
  insert into app.caller_usage as u (user_id, bytes) values (o.user_id, n)
    on conflict (user_id) do update set bytes = u.bytes + excluded.bytes;
  return null;
end $$;

ALTER FUNCTION private.tg_count_bytes() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_creator_is_admin() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform private.lock_admin(new.brand_id, new.user_id);
  return null;
end $$;

ALTER FUNCTION private.tg_creator_is_admin() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_creator_is_member() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  perform 1 from app.brand_users bu where bu.brand_id = new.brand_id and bu.user_id = new.user_id for key share;
  if not found then
    raise exception 'no member of this brand any more' using errcode = '42501';
  end if;
  return null;
end $$;

ALTER FUNCTION private.tg_creator_is_member() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_end_credentials() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  update app.invitations i set revoked_at = clock_timestamp()
    where i.brand_id = old.brand_id and i.revoked_at is null and i.accepted_at is null
      and (i.user_id = old.user_id or (tg_op = 'DELETE' and i.email = private.email_of(old.user_id)));
  if tg_op = 'DELETE' then
    update app.api_keys k set revoked_at = clock_timestamp()
      where k.brand_id = old.brand_id and k.user_id = old.user_id and k.revoked_at is null;
  end if;
  return null;
end $$;

ALTER FUNCTION private.tg_end_credentials() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_keep_an_admin() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if old.role <> 'admin' then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', old.brand_id));
  if not exists (select 1 from app.brand_users bu where bu.brand_id = old.brand_id and bu.role = 'admin') then
    raise exception 'a brand keeps at least one admin' using errcode = 'OB001';
  end if;
  return null;
end $$;

ALTER FUNCTION private.tg_keep_an_admin() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_limit_brands() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare
  max_brands integer := coalesce((private.ctx('brands_per_account'))::integer, 20);
begin
  if current_setting('role', true) <> 'authenticated' or new.user_id is distinct from private.uid() then
    return new;  -- the owner, or refused by the policy: a caller must not learn how many brands another account has
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('brands', new.user_id::text));
  if (select count(*) from app.brands b where uuid_send(b.user_id) = uuid_send(new.user_id)) >= max_brands then
    raise exception 'an account has so many brands at most' using errcode = 'OB005';
  end if;
  return new;
end $$;

ALTER FUNCTION private.tg_limit_brands() OWNER TO onbrand_definer;

CREATE FUNCTION private.ticket_brand() RETURNS text
    LANGUAGE sql STABLE
    RETURN CASE WHEN (private.my_role() IS NOT NULL) THEN private.claimed_brand_id() ELSE NULL::text END;

ALTER FUNCTION private.ticket_brand() OWNER TO onbrand_definer;

CREATE FUNCTION private.transaction_stamp() RETURNS text
    LANGUAGE sql STABLE
    RETURN (((pg_backend_pid())::text || ' '::text) || (EXTRACT(epoch FROM transaction_timestamp()))::text);

ALTER FUNCTION private.transaction_stamp() OWNER TO onbrand_definer;

CREATE FUNCTION private.uid() RETURNS uuid
    LANGUAGE sql STABLE
    RETURN ((private.claims() ->> 'sub'::text))::uuid;

ALTER FUNCTION private.uid() OWNER TO onbrand_definer;

CREATE TABLE app.api_keys (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    prefix text GENERATED ALWAYS AS (('ob_'::text || "left"((id)::text, 8))) STORED NOT NULL,
    hash text NOT NULL,
    scopes text[] NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    CONSTRAINT api_keys_check CHECK ((expires_at > created_at)),
    CONSTRAINT api_keys_hash_check CHECK ((hash ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT api_keys_name_check CHECK (((char_length(name) >= 1) AND (char_length(name) <= 200))),
    CONSTRAINT api_keys_scopes_check CHECK ((((cardinality(scopes) >= 1) AND (cardinality(scopes) <= 5)) AND (array_position(scopes, NULL::text) IS NULL) AND (scopes <@ ARRAY['read'::text, 'upload'::text, 'train'::text, 'generate'::text, 'manage'::text])))
);
ALTER TABLE ONLY app.api_keys ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN prefix SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN hash SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN scopes SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN created_at SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN expires_at SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN last_used_at SET STATISTICS 0;
ALTER TABLE ONLY app.api_keys ALTER COLUMN revoked_at SET STATISTICS 0;

ALTER TABLE ONLY app.api_keys FORCE ROW LEVEL SECURITY;

ALTER TABLE app.api_keys OWNER TO onbrand_owner;

CREATE TABLE app.asset_captions (
    brand_id text NOT NULL,
    asset_id uuid NOT NULL,
    version integer NOT NULL,
    caption text NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT asset_captions_caption_check CHECK ((char_length(caption) <= 5000)),
    CONSTRAINT asset_captions_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY app.asset_captions ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.asset_captions ALTER COLUMN asset_id SET STATISTICS 0;
ALTER TABLE ONLY app.asset_captions ALTER COLUMN version SET STATISTICS 0;
ALTER TABLE ONLY app.asset_captions ALTER COLUMN caption SET STATISTICS 0;
ALTER TABLE ONLY app.asset_captions ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.asset_captions ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY app.asset_captions FORCE ROW LEVEL SECURITY;

ALTER TABLE app.asset_captions OWNER TO onbrand_owner;

CREATE TABLE app.brand_assets (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    type text DEFAULT 'image'::text NOT NULL,
    object text NOT NULL,
    object_name text NOT NULL COLLATE pg_catalog."C",
    sha256 text NOT NULL,
    content_type text NOT NULL,
    bytes bigint NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    features jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT brand_assets_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT brand_assets_check CHECK ((split_part(object_name, '/'::text, 1) = brand_id)),
    CONSTRAINT brand_assets_content_type_check CHECK ((content_type = ANY (ARRAY['image/png'::text, 'image/jpeg'::text, 'image/webp'::text]))),
    CONSTRAINT brand_assets_features_check CHECK (((jsonb_typeof(features) = 'object'::text) AND (octet_length((features)::text) <= 4000))),
    CONSTRAINT brand_assets_height_check CHECK ((height > 0)),
    CONSTRAINT brand_assets_metadata_check CHECK (((jsonb_typeof(metadata) = 'object'::text) AND (octet_length((metadata)::text) <= 20000))),
    CONSTRAINT brand_assets_name_check CHECK (((char_length(name) >= 1) AND (char_length(name) <= 255))),
    CONSTRAINT brand_assets_object_check CHECK ((object = ANY (ARRAY['logo'::text, 'product'::text, 'person'::text, 'packaging'::text, 'other'::text]))),
    CONSTRAINT brand_assets_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT brand_assets_type_check CHECK ((type = 'image'::text)),
    CONSTRAINT brand_assets_width_check CHECK ((width > 0))
);
ALTER TABLE ONLY app.brand_assets ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN type SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN object SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN object_name SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN sha256 SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN content_type SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN bytes SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN width SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN height SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN metadata SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN created_at SET STATISTICS 0;
ALTER TABLE ONLY app.brand_assets ALTER COLUMN features SET STATISTICS 0;

ALTER TABLE ONLY app.brand_assets FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brand_assets OWNER TO onbrand_owner;

CREATE TABLE app.brand_limits (
    brand_id text NOT NULL,
    weight double precision DEFAULT 1 NOT NULL,
    max_waiting_pictures integer,
    slot_quota integer,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    max_running_trainings integer,
    max_open_trainings integer,
    CONSTRAINT brand_limits_max_open_trainings_check CHECK (((max_open_trainings >= 1) AND (max_open_trainings <= 100000))),
    CONSTRAINT brand_limits_max_running_trainings_check CHECK (((max_running_trainings >= 1) AND (max_running_trainings <= 1000))),
    CONSTRAINT brand_limits_max_waiting_pictures_check CHECK (((max_waiting_pictures >= 1) AND (max_waiting_pictures <= 100000))),
    CONSTRAINT brand_limits_slot_quota_check CHECK (((slot_quota >= 1) AND (slot_quota <= 10000))),
    CONSTRAINT brand_limits_weight_check CHECK (((weight >= (0.1)::double precision) AND (weight <= (10)::double precision)))
);
ALTER TABLE ONLY app.brand_limits ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.brand_limits ALTER COLUMN weight SET STATISTICS 0;
ALTER TABLE ONLY app.brand_limits ALTER COLUMN max_waiting_pictures SET STATISTICS 0;
ALTER TABLE ONLY app.brand_limits ALTER COLUMN slot_quota SET STATISTICS 0;
ALTER TABLE ONLY app.brand_limits ALTER COLUMN updated_at SET STATISTICS 0;
ALTER TABLE ONLY app.brand_limits ALTER COLUMN max_running_trainings SET STATISTICS 0;
ALTER TABLE ONLY app.brand_limits ALTER COLUMN max_open_trainings SET STATISTICS 0;

ALTER TABLE ONLY app.brand_limits FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brand_limits OWNER TO onbrand_owner;

CREATE TABLE app.brand_usage (
    brand_id text NOT NULL,
    bytes bigint NOT NULL
);
ALTER TABLE ONLY app.brand_usage ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.brand_usage ALTER COLUMN bytes SET STATISTICS 0;

ALTER TABLE ONLY app.brand_usage FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brand_usage OWNER TO onbrand_owner;

CREATE TABLE app.brand_users (
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    role text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT brand_users_role_check CHECK ((role = ANY (ARRAY['member'::text, 'admin'::text])))
);
ALTER TABLE ONLY app.brand_users ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.brand_users ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.brand_users ALTER COLUMN role SET STATISTICS 0;
ALTER TABLE ONLY app.brand_users ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY app.brand_users FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brand_users OWNER TO onbrand_owner;

CREATE TABLE app.brands (
    id text NOT NULL,
    name text NOT NULL,
    home_region text DEFAULT 'us-east-1'::text NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT brands_home_region_check CHECK ((home_region ~ '^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$'::text)),
    CONSTRAINT brands_id_check CHECK (((id ~ '^[a-z0-9][a-z0-9-]{1,62}$'::text) AND (id !~ '^(us|eu|ap|sa|ca|me|af|il)-'::text))),
    CONSTRAINT brands_name_check CHECK (((char_length(name) >= 1) AND (char_length(name) <= 200)))
);
ALTER TABLE ONLY app.brands ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.brands ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE ONLY app.brands ALTER COLUMN home_region SET STATISTICS 0;
ALTER TABLE ONLY app.brands ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.brands ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY app.brands FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brands OWNER TO onbrand_owner;

CREATE TABLE app.caller_usage (
    user_id uuid NOT NULL,
    bytes bigint NOT NULL
);

ALTER TABLE ONLY app.caller_usage FORCE ROW LEVEL SECURITY;

ALTER TABLE app.caller_usage OWNER TO onbrand_owner;

CREATE TABLE app.dispatch_lease (
    one boolean DEFAULT true NOT NULL,
    holder uuid NOT NULL,
    until timestamp with time zone NOT NULL,
    CONSTRAINT dispatch_lease_one_check CHECK (one)
);

ALTER TABLE ONLY app.dispatch_lease FORCE ROW LEVEL SECURITY;

ALTER TABLE app.dispatch_lease OWNER TO onbrand_owner;

CREATE TABLE app.documents (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    title text NOT NULL,
    object_name text NOT NULL COLLATE pg_catalog."C",
    content_type text NOT NULL,
    bytes bigint NOT NULL,
    num_pages integer,
    sha256 text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT documents_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT documents_check CHECK ((split_part(object_name, '/'::text, 1) = brand_id)),
    CONSTRAINT documents_check1 CHECK (((num_pages IS NULL) = (content_type <> 'application/pdf'::text))),
    CONSTRAINT documents_content_type_check CHECK ((content_type = ANY (ARRAY['application/pdf'::text, 'text/markdown; charset=utf-8'::text]))),
    CONSTRAINT documents_name_check CHECK (((name ~ '^[a-z0-9][a-z0-9-]{0,59}$'::text) AND (name <> 'incoming'::text))),
    CONSTRAINT documents_num_pages_check CHECK ((num_pages > 0)),
    CONSTRAINT documents_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT documents_title_check CHECK (((char_length(title) >= 1) AND (char_length(title) <= 200))),
    CONSTRAINT documents_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY app.documents ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN version SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN title SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN object_name SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN content_type SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN bytes SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN num_pages SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN sha256 SET STATISTICS 0;
ALTER TABLE ONLY app.documents ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY app.documents FORCE ROW LEVEL SECURITY;

ALTER TABLE app.documents OWNER TO onbrand_owner;

CREATE TABLE app.generated_images (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    generation_id uuid NOT NULL,
    model_id uuid,
    user_id uuid NOT NULL,
    index integer NOT NULL,
    seed bigint NOT NULL,
    object_name text NOT NULL COLLATE pg_catalog."C",
    content_type text NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    receipt jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT generated_images_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT generated_images_check CHECK ((split_part(object_name, '/'::text, 1) = brand_id)),
    CONSTRAINT generated_images_content_type_check CHECK ((content_type = ANY (ARRAY['image/png'::text, 'image/jpeg'::text, 'image/webp'::text]))),
    CONSTRAINT generated_images_height_check CHECK ((height > 0)),
    CONSTRAINT generated_images_index_check CHECK ((index >= 0)),
    CONSTRAINT generated_images_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT generated_images_width_check CHECK ((width > 0))
);
ALTER TABLE ONLY app.generated_images ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN generation_id SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN model_id SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN index SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN seed SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN object_name SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN content_type SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN width SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN height SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN bytes SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN sha256 SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN receipt SET STATISTICS 0;
ALTER TABLE ONLY app.generated_images ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY app.generated_images FORCE ROW LEVEL SECURITY;

ALTER TABLE app.generated_images OWNER TO onbrand_owner;

CREATE TABLE app.generation_adapters (
    brand_id text NOT NULL,
    generation_id uuid NOT NULL,
    index integer NOT NULL,
    model_id uuid,
    model_name text NOT NULL,
    sha256 text NOT NULL,
    scale double precision NOT NULL,
    CONSTRAINT generation_adapters_index_check CHECK (((index >= 0) AND (index <= 3))),
    CONSTRAINT generation_adapters_model_name_check CHECK ((char_length(model_name) <= 100)),
    CONSTRAINT generation_adapters_scale_check CHECK (((scale >= ('-10'::integer)::double precision) AND (scale <= (10)::double precision))),
    CONSTRAINT generation_adapters_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text))
);
ALTER TABLE ONLY app.generation_adapters ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.generation_adapters ALTER COLUMN generation_id SET STATISTICS 0;
ALTER TABLE ONLY app.generation_adapters ALTER COLUMN index SET STATISTICS 0;
ALTER TABLE ONLY app.generation_adapters ALTER COLUMN model_id SET STATISTICS 0;
ALTER TABLE ONLY app.generation_adapters ALTER COLUMN model_name SET STATISTICS 0;
ALTER TABLE ONLY app.generation_adapters ALTER COLUMN sha256 SET STATISTICS 0;
ALTER TABLE ONLY app.generation_adapters ALTER COLUMN scale SET STATISTICS 0;

ALTER TABLE ONLY app.generation_adapters FORCE ROW LEVEL SECURITY;

ALTER TABLE app.generation_adapters OWNER TO onbrand_owner;

CREATE TABLE app.generations (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    model_id uuid,
    model_type text NOT NULL,
    model_name text NOT NULL,
    prompt text NOT NULL,
    negative_prompt text DEFAULT ''::text NOT NULL,
    num_images integer NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    seed bigint NOT NULL,
    num_inference_steps integer NOT NULL,
    guidance_scale double precision NOT NULL,
    true_cfg_scale double precision NOT NULL,
    lora_scale double precision NOT NULL,
    output_format text NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    progress integer DEFAULT 0 NOT NULL,
    error jsonb,
    cancel_requested_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    sampler text,
    exclusive boolean DEFAULT false NOT NULL,
    preview_every integer DEFAULT 0 NOT NULL,
    num_lost integer DEFAULT 0 NOT NULL,
    output_compression integer,
    CONSTRAINT generations_height_check CHECK ((height > 0)),
    CONSTRAINT generations_model_name_check CHECK ((char_length(model_name) <= 100)),
    CONSTRAINT generations_model_type_check CHECK ((model_type = ANY (ARRAY['sd15'::text, 'sdxl'::text, 'flux'::text]))),
    CONSTRAINT generations_negative_prompt_check CHECK ((char_length(negative_prompt) <= 20000)),
    CONSTRAINT generations_num_images_check CHECK (((num_images >= 1) AND (num_images <= 64))),
    CONSTRAINT generations_num_inference_steps_check CHECK ((num_inference_steps > 0)),
    CONSTRAINT generations_num_lost_check CHECK ((num_lost >= 0)),
    CONSTRAINT generations_output_compression_check CHECK (((output_compression >= 0) AND (output_compression <= 100))),
    CONSTRAINT generations_output_format_check CHECK ((output_format = ANY (ARRAY['png'::text, 'jpeg'::text, 'webp'::text]))),
    CONSTRAINT generations_preview_every_check CHECK (((preview_every >= 0) AND (preview_every <= 1000))),
    CONSTRAINT generations_progress_check CHECK (((progress >= 0) AND (progress <= 100))),
    CONSTRAINT generations_prompt_check CHECK (((char_length(prompt) >= 1) AND (char_length(prompt) <= 20000))),
    CONSTRAINT generations_sampler_check CHECK ((sampler ~ '^[a-z0-9+-]{1,20}$'::text)),
    CONSTRAINT generations_seed_check CHECK ((seed >= 0)),
    CONSTRAINT generations_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'running'::text, 'completed'::text, 'failed'::text, 'canceled'::text]))),
    CONSTRAINT generations_width_check CHECK ((width > 0))
);
ALTER TABLE ONLY app.generations ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN model_id SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN model_type SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN model_name SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN prompt SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN negative_prompt SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN num_images SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN width SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN height SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN seed SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN num_inference_steps SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN guidance_scale SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN true_cfg_scale SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN lora_scale SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN output_format SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN status SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN progress SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN error SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN cancel_requested_at SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN heartbeat_at SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN created_at SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN started_at SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN completed_at SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN sampler SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN exclusive SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN preview_every SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN num_lost SET STATISTICS 0;
ALTER TABLE ONLY app.generations ALTER COLUMN output_compression SET STATISTICS 0;

ALTER TABLE ONLY app.generations FORCE ROW LEVEL SECURITY;

ALTER TABLE app.generations OWNER TO onbrand_owner;

CREATE TABLE app.idempotency_keys (
    brand_id text,
    user_id uuid NOT NULL,
    key text NOT NULL,
    route text NOT NULL,
    request_sha256 text NOT NULL,
    status integer,
    body jsonb,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    key_id text DEFAULT ''::text NOT NULL,
    caller text GENERATED ALWAYS AS (((((COALESCE(brand_id, ''::text) || ' '::text) || (user_id)::text) || ' '::text) || key_id)) STORED NOT NULL,
    CONSTRAINT idempotency_keys_key_check CHECK (((char_length(key) >= 1) AND (char_length(key) <= 255))),
    CONSTRAINT idempotency_keys_key_id_check CHECK ((char_length(key_id) <= 36)),
    CONSTRAINT idempotency_keys_request_sha256_check CHECK ((request_sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT idempotency_keys_route_check CHECK ((char_length(route) <= 200))
);
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN key SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN route SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN request_sha256 SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN status SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN body SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN created_at SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN key_id SET STATISTICS 0;
ALTER TABLE ONLY app.idempotency_keys ALTER COLUMN caller SET STATISTICS 0;

ALTER TABLE ONLY app.idempotency_keys FORCE ROW LEVEL SECURITY;

ALTER TABLE app.idempotency_keys OWNER TO onbrand_owner;

CREATE TABLE app.invitations (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    email text NOT NULL,
    role text NOT NULL,
    hash text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    accepted_at timestamp with time zone,
    accepted_by uuid,
    revoked_at timestamp with time zone,
    declined boolean DEFAULT false NOT NULL,
    CONSTRAINT invitations_check CHECK (((expires_at > created_at) AND (expires_at <= (created_at + '31 days'::interval)))),
    CONSTRAINT invitations_check1 CHECK ((num_nulls(accepted_at, accepted_by) = ANY (ARRAY[0, 2]))),
    CONSTRAINT invitations_check2 CHECK (((accepted_at IS NULL) OR (revoked_at IS NULL))),
    CONSTRAINT invitations_check3 CHECK (((NOT declined) OR (revoked_at IS NOT NULL))),
    CONSTRAINT invitations_email_check CHECK (((email = lower(email)) AND ((char_length(email) >= 3) AND (char_length(email) <= 254)))),
    CONSTRAINT invitations_hash_check CHECK ((hash ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT invitations_role_check CHECK ((role = ANY (ARRAY['member'::text, 'admin'::text])))
);
ALTER TABLE ONLY app.invitations ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN email SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN role SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN hash SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN created_at SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN expires_at SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN accepted_at SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN accepted_by SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN revoked_at SET STATISTICS 0;
ALTER TABLE ONLY app.invitations ALTER COLUMN declined SET STATISTICS 0;

ALTER TABLE ONLY app.invitations FORCE ROW LEVEL SECURITY;

ALTER TABLE app.invitations OWNER TO onbrand_owner;

CREATE TABLE app.job_assets (
    brand_id text NOT NULL,
    job_id uuid NOT NULL,
    asset_id uuid NOT NULL
);
ALTER TABLE ONLY app.job_assets ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.job_assets ALTER COLUMN job_id SET STATISTICS 0;
ALTER TABLE ONLY app.job_assets ALTER COLUMN asset_id SET STATISTICS 0;

ALTER TABLE ONLY app.job_assets FORCE ROW LEVEL SECURITY;

ALTER TABLE app.job_assets OWNER TO onbrand_owner;

CREATE TABLE app.job_events (
    brand_id text NOT NULL,
    subject_id uuid GENERATED ALWAYS AS (COALESCE(job_id, generation_id)) STORED NOT NULL,
    seq bigint NOT NULL,
    job_id uuid,
    generation_id uuid,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    kind text NOT NULL,
    data jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT job_events_check CHECK ((num_nonnulls(job_id, generation_id) = 1)),
    CONSTRAINT job_events_data_check CHECK ((octet_length((data)::text) <= 20000)),
    CONSTRAINT job_events_kind_check CHECK ((kind ~ '^[a-z_]{1,40}$'::text)),
    CONSTRAINT job_events_seq_check CHECK ((seq > 0))
);
ALTER TABLE ONLY app.job_events ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.job_events ALTER COLUMN subject_id SET STATISTICS 0;
ALTER TABLE ONLY app.job_events ALTER COLUMN seq SET STATISTICS 0;
ALTER TABLE ONLY app.job_events ALTER COLUMN job_id SET STATISTICS 0;
ALTER TABLE ONLY app.job_events ALTER COLUMN generation_id SET STATISTICS 0;
ALTER TABLE ONLY app.job_events ALTER COLUMN at SET STATISTICS 0;
ALTER TABLE ONLY app.job_events ALTER COLUMN kind SET STATISTICS 0;
ALTER TABLE ONLY app.job_events ALTER COLUMN data SET STATISTICS 0;

ALTER TABLE ONLY app.job_events FORCE ROW LEVEL SECURITY;

ALTER TABLE app.job_events OWNER TO onbrand_owner;

CREATE TABLE app.lora_training_jobs (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    model_type text NOT NULL,
    training_config jsonb DEFAULT '{}'::jsonb NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    progress integer DEFAULT 0 NOT NULL,
    provider text DEFAULT 'ray'::text NOT NULL,
    provider_job_id text,
    attempts integer DEFAULT 0 NOT NULL,
    model_id uuid,
    model_url text,
    sample_images_urls jsonb DEFAULT '[]'::jsonb NOT NULL,
    error jsonb,
    metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    cancel_requested_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    num_workers integer DEFAULT 1 NOT NULL,
    waiting_for text,
    waiting_since timestamp with time zone,
    start_model_id uuid,
    retry_of uuid,
    run_id uuid,
    stop_requested_at timestamp with time zone,
    CONSTRAINT lora_training_jobs_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT lora_training_jobs_check CHECK (((waiting_for IS NULL) = (waiting_since IS NULL))),
    CONSTRAINT lora_training_jobs_model_type_check CHECK ((model_type = ANY (ARRAY['sd15'::text, 'sdxl'::text, 'flux'::text]))),
    CONSTRAINT lora_training_jobs_name_check CHECK (((char_length(name) >= 1) AND (char_length(name) <= 200))),
    CONSTRAINT lora_training_jobs_num_workers_check CHECK (((num_workers >= 1) AND (num_workers <= 64))),
    CONSTRAINT lora_training_jobs_progress_check CHECK (((progress >= 0) AND (progress <= 100))),
    CONSTRAINT lora_training_jobs_provider_check CHECK ((provider = ANY (ARRAY['ray'::text, 'replicate'::text, 'runpod'::text]))),
    CONSTRAINT lora_training_jobs_provider_job_id_check CHECK ((char_length(provider_job_id) <= 200)),
    CONSTRAINT lora_training_jobs_sample_images_urls_check CHECK ((jsonb_typeof(sample_images_urls) = 'array'::text)),
    CONSTRAINT lora_training_jobs_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'training'::text, 'completed'::text, 'failed'::text, 'canceled'::text]))),
    CONSTRAINT lora_training_jobs_training_config_check CHECK (((jsonb_typeof(training_config) = 'object'::text) AND (octet_length((training_config)::text) <= 100000))),
    CONSTRAINT lora_training_jobs_waiting_for_check CHECK ((waiting_for = ANY (ARRAY['brand'::text, 'platform'::text, 'resources'::text, 'operator'::text])))
);
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN model_type SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN training_config SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN status SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN progress SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN provider SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN provider_job_id SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN attempts SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN model_id SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN model_url SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN sample_images_urls SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN error SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN metrics SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN cancel_requested_at SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN heartbeat_at SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN created_at SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN started_at SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN completed_at SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN num_workers SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN waiting_for SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN waiting_since SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN start_model_id SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN retry_of SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN run_id SET STATISTICS 0;
ALTER TABLE ONLY app.lora_training_jobs ALTER COLUMN stop_requested_at SET STATISTICS 0;

ALTER TABLE ONLY app.lora_training_jobs FORCE ROW LEVEL SECURITY;

ALTER TABLE app.lora_training_jobs OWNER TO onbrand_owner;

CREATE TABLE app.models (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    job_id uuid,
    user_id uuid NOT NULL,
    model_type text NOT NULL,
    version integer NOT NULL,
    name text GENERATED ALWAYS AS (((model_type || '-lora-v'::text) || (version)::text)) STORED NOT NULL,
    object_name text NOT NULL COLLATE pg_catalog."C",
    sha256 text NOT NULL,
    bytes bigint NOT NULL,
    rank integer NOT NULL,
    trigger_word text NOT NULL,
    base_revision text NOT NULL,
    metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT models_base_revision_check CHECK ((char_length(base_revision) <= 200)),
    CONSTRAINT models_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT models_check CHECK ((split_part(object_name, '/'::text, 1) = brand_id)),
    CONSTRAINT models_model_type_check CHECK ((model_type = ANY (ARRAY['sd15'::text, 'sdxl'::text, 'flux'::text]))),
    CONSTRAINT models_rank_check CHECK (((rank >= 1) AND (rank <= 1024))),
    CONSTRAINT models_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT models_trigger_word_check CHECK (((char_length(trigger_word) >= 1) AND (char_length(trigger_word) <= 100))),
    CONSTRAINT models_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY app.models ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN job_id SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN model_type SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN version SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN object_name SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN sha256 SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN bytes SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN rank SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN trigger_word SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN base_revision SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN metrics SET STATISTICS 0;
ALTER TABLE ONLY app.models ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY app.models FORCE ROW LEVEL SECURITY;

ALTER TABLE app.models OWNER TO onbrand_owner;

CREATE TABLE app.numbers (
    brand_id text NOT NULL,
    series text NOT NULL,
    last bigint NOT NULL,
    CONSTRAINT numbers_last_check CHECK ((last > 0)),
    CONSTRAINT numbers_series_check CHECK ((series ~ '^[a-z0-9:.-]{1,80}$'::text))
);
ALTER TABLE ONLY app.numbers ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.numbers ALTER COLUMN series SET STATISTICS 0;
ALTER TABLE ONLY app.numbers ALTER COLUMN last SET STATISTICS 0;

ALTER TABLE ONLY app.numbers FORCE ROW LEVEL SECURITY;

ALTER TABLE app.numbers OWNER TO onbrand_owner;

CREATE TABLE app.upload_objects (
    brand_id text NOT NULL,
    upload_id uuid NOT NULL,
    index integer NOT NULL,
    asset_id uuid,
    document_id uuid,
    CONSTRAINT upload_objects_check CHECK ((num_nonnulls(asset_id, document_id) = 1)),
    CONSTRAINT upload_objects_index_check CHECK ((index >= 0))
);
ALTER TABLE ONLY app.upload_objects ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.upload_objects ALTER COLUMN upload_id SET STATISTICS 0;
ALTER TABLE ONLY app.upload_objects ALTER COLUMN index SET STATISTICS 0;
ALTER TABLE ONLY app.upload_objects ALTER COLUMN asset_id SET STATISTICS 0;
ALTER TABLE ONLY app.upload_objects ALTER COLUMN document_id SET STATISTICS 0;

ALTER TABLE ONLY app.upload_objects FORCE ROW LEVEL SECURITY;

ALTER TABLE app.upload_objects OWNER TO onbrand_owner;

CREATE TABLE app.uploads (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    kind text NOT NULL,
    filename text NOT NULL,
    content_type text NOT NULL,
    bytes bigint NOT NULL,
    sha256 text,
    object text DEFAULT 'other'::text NOT NULL,
    caption text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    error jsonb,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone DEFAULT (clock_timestamp() + '01:00:00'::interval) NOT NULL,
    ended_at timestamp with time zone,
    swept_at timestamp with time zone,
    CONSTRAINT uploads_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT uploads_caption_check CHECK ((char_length(caption) <= 5000)),
    CONSTRAINT uploads_check CHECK (((status = 'pending'::text) = (ended_at IS NULL))),
    CONSTRAINT uploads_content_type_check CHECK ((content_type = ANY (ARRAY['image/png'::text, 'image/jpeg'::text, 'image/webp'::text, 'application/zip'::text, 'application/pdf'::text, 'text/markdown'::text]))),
    CONSTRAINT uploads_error_check CHECK ((octet_length((error)::text) <= 5000)),
    CONSTRAINT uploads_filename_check CHECK (((char_length(filename) >= 1) AND (char_length(filename) <= 255))),
    CONSTRAINT uploads_kind_check CHECK ((kind = ANY (ARRAY['image'::text, 'zip'::text, 'document'::text]))),
    CONSTRAINT uploads_metadata_check CHECK (((jsonb_typeof(metadata) = 'object'::text) AND (octet_length((metadata)::text) <= 20000))),
    CONSTRAINT uploads_object_check CHECK ((object = ANY (ARRAY['logo'::text, 'product'::text, 'person'::text, 'packaging'::text, 'other'::text]))),
    CONSTRAINT uploads_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT uploads_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'completed'::text, 'refused'::text, 'canceled'::text, 'expired'::text])))
);
ALTER TABLE ONLY app.uploads ALTER COLUMN id SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN kind SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN filename SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN content_type SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN bytes SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN sha256 SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN object SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN caption SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN metadata SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN status SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN error SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN created_at SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN expires_at SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN ended_at SET STATISTICS 0;
ALTER TABLE ONLY app.uploads ALTER COLUMN swept_at SET STATISTICS 0;

ALTER TABLE ONLY app.uploads FORCE ROW LEVEL SECURITY;

ALTER TABLE app.uploads OWNER TO onbrand_owner;

CREATE TABLE identity.attempts (
    key text NOT NULL,
    due timestamp with time zone NOT NULL,
    CONSTRAINT attempts_key_check CHECK ((key ~ '^[0-9a-f]{64}$'::text))
);

ALTER TABLE ONLY identity.attempts FORCE ROW LEVEL SECURITY;

ALTER TABLE identity.attempts OWNER TO onbrand_identity;

CREATE TABLE identity.sessions (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    hash text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    idle interval NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT sessions_hash_check CHECK ((hash ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT sessions_idle_check CHECK ((idle > '00:00:00'::interval))
);

ALTER TABLE ONLY identity.sessions FORCE ROW LEVEL SECURITY;

ALTER TABLE identity.sessions OWNER TO onbrand_identity;

CREATE TABLE identity.subjects (
    issuer text NOT NULL,
    subject text NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT subjects_issuer_check CHECK (((char_length(issuer) >= 1) AND (char_length(issuer) <= 500))),
    CONSTRAINT subjects_subject_check CHECK (((char_length(subject) >= 1) AND (char_length(subject) <= 255)))
);

ALTER TABLE ONLY identity.subjects FORCE ROW LEVEL SECURITY;

ALTER TABLE identity.subjects OWNER TO onbrand_identity;

CREATE TABLE identity.users (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    email text,
    password_hash text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    email_verified_at timestamp with time zone,
    CONSTRAINT users_check CHECK (((email_verified_at IS NULL) OR (email IS NOT NULL))),
    CONSTRAINT users_email_check CHECK (((email = lower(email)) AND ((char_length(email) >= 3) AND (char_length(email) <= 254))))
);

ALTER TABLE ONLY identity.users FORCE ROW LEVEL SECURITY;

ALTER TABLE identity.users OWNER TO onbrand_identity;

CREATE TABLE private.claim_keys (
    id text NOT NULL,
    inner_pad bytea NOT NULL,
    outer_pad bytea NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT claim_keys_id_check CHECK ((id ~ '^[0-9a-f]{16}$'::text)),
    CONSTRAINT claim_keys_inner_pad_check CHECK ((octet_length(inner_pad) = 64)),
    CONSTRAINT claim_keys_outer_pad_check CHECK ((octet_length(outer_pad) = 64))
);

ALTER TABLE ONLY private.claim_keys FORCE ROW LEVEL SECURITY;

ALTER TABLE private.claim_keys OWNER TO onbrand_definer;

CREATE TABLE private.lock_seed (
    one boolean DEFAULT true NOT NULL,
    seed bigint NOT NULL,
    CONSTRAINT lock_seed_one_check CHECK (one)
);

ALTER TABLE ONLY private.lock_seed FORCE ROW LEVEL SECURITY;

ALTER TABLE private.lock_seed OWNER TO onbrand_definer;

CREATE TABLE storage.buckets (
    id text NOT NULL
);

ALTER TABLE ONLY storage.buckets FORCE ROW LEVEL SECURITY;

ALTER TABLE storage.buckets OWNER TO onbrand_owner;

CREATE TABLE storage.objects (
    bucket_id text NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    brand_id text GENERATED ALWAYS AS (split_part(name, '/'::text, 1)) STORED NOT NULL,
    user_id uuid NOT NULL,
    content_type text NOT NULL,
    bytes bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT objects_bytes_check CHECK ((bytes >= 0)),
    CONSTRAINT objects_content_type_check CHECK ((char_length(content_type) <= 100)),
    CONSTRAINT objects_name_check CHECK (((octet_length(name) <= 900) AND (name ~ '^[a-z0-9][a-z0-9-]{1,62}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){1,6}$'::text)))
);
ALTER TABLE ONLY storage.objects ALTER COLUMN bucket_id SET STATISTICS 0;
ALTER TABLE ONLY storage.objects ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE ONLY storage.objects ALTER COLUMN brand_id SET STATISTICS 0;
ALTER TABLE ONLY storage.objects ALTER COLUMN user_id SET STATISTICS 0;
ALTER TABLE ONLY storage.objects ALTER COLUMN content_type SET STATISTICS 0;
ALTER TABLE ONLY storage.objects ALTER COLUMN bytes SET STATISTICS 0;
ALTER TABLE ONLY storage.objects ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY storage.objects FORCE ROW LEVEL SECURITY;

ALTER TABLE storage.objects OWNER TO onbrand_owner;

ALTER TABLE ONLY app.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.asset_captions
    ADD CONSTRAINT asset_captions_pkey PRIMARY KEY (brand_id, asset_id, version);

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_brand_id_object_name_key UNIQUE (brand_id, object_name);

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_brand_id_sha256_key UNIQUE (brand_id, sha256);

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.brand_limits
    ADD CONSTRAINT brand_limits_pkey PRIMARY KEY (brand_id);

ALTER TABLE ONLY app.brand_usage
    ADD CONSTRAINT brand_usage_pkey PRIMARY KEY (brand_id);

ALTER TABLE ONLY app.brand_users
    ADD CONSTRAINT brand_users_pkey PRIMARY KEY (brand_id, user_id);

ALTER TABLE ONLY app.brands
    ADD CONSTRAINT brands_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.caller_usage
    ADD CONSTRAINT caller_usage_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY app.dispatch_lease
    ADD CONSTRAINT dispatch_lease_pkey PRIMARY KEY (one);

ALTER TABLE ONLY app.documents
    ADD CONSTRAINT documents_brand_id_name_version_key UNIQUE (brand_id, name, version);

ALTER TABLE ONLY app.documents
    ADD CONSTRAINT documents_brand_id_object_name_key UNIQUE (brand_id, object_name);

ALTER TABLE ONLY app.documents
    ADD CONSTRAINT documents_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_generation_id_index_key UNIQUE (brand_id, generation_id, index);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_object_name_key UNIQUE (brand_id, object_name);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.generation_adapters
    ADD CONSTRAINT generation_adapters_pkey PRIMARY KEY (brand_id, generation_id, index);

ALTER TABLE ONLY app.generations
    ADD CONSTRAINT generations_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (caller, key);

ALTER TABLE ONLY app.invitations
    ADD CONSTRAINT invitations_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.job_assets
    ADD CONSTRAINT job_assets_pkey PRIMARY KEY (brand_id, job_id, asset_id);

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_pkey PRIMARY KEY (brand_id, subject_id, seq);

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_job_id_key UNIQUE (brand_id, job_id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_model_type_version_key UNIQUE (brand_id, model_type, version);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_object_name_key UNIQUE (brand_id, object_name);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY app.numbers
    ADD CONSTRAINT numbers_pkey PRIMARY KEY (brand_id, series);

ALTER TABLE ONLY app.upload_objects
    ADD CONSTRAINT upload_objects_pkey PRIMARY KEY (brand_id, upload_id, index);

ALTER TABLE ONLY app.uploads
    ADD CONSTRAINT uploads_pkey PRIMARY KEY (brand_id, id);

ALTER TABLE ONLY audit.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (brand_id, seq);

ALTER TABLE ONLY identity.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (key);

ALTER TABLE ONLY identity.sessions
    ADD CONSTRAINT sessions_hash_key UNIQUE (hash);

ALTER TABLE ONLY identity.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY identity.subjects
    ADD CONSTRAINT subjects_pkey PRIMARY KEY (issuer, subject);

ALTER TABLE ONLY identity.users
    ADD CONSTRAINT users_email_key UNIQUE (email);

ALTER TABLE ONLY identity.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY private.claim_keys
    ADD CONSTRAINT claim_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY private.lock_seed
    ADD CONSTRAINT lock_seed_pkey PRIMARY KEY (one);

ALTER TABLE ONLY storage.buckets
    ADD CONSTRAINT buckets_pkey PRIMARY KEY (id);

ALTER TABLE ONLY storage.objects
    ADD CONSTRAINT objects_pkey PRIMARY KEY (brand_id, bucket_id, name);

CREATE INDEX api_keys_by_id ON app.api_keys USING btree (uuid_send(id));
ALTER INDEX app.api_keys_by_id ALTER COLUMN 1 SET STATISTICS 0;

CREATE INDEX api_keys_by_time ON app.api_keys USING btree (brand_id, created_at, id);

CREATE INDEX api_keys_by_user ON app.api_keys USING btree (brand_id, user_id) WHERE (revoked_at IS NULL);

CREATE INDEX brand_assets_by_time ON app.brand_assets USING btree (brand_id, created_at, id);

CREATE INDEX brand_users_by_user ON app.brand_users USING btree (uuid_send(user_id), brand_id);
ALTER INDEX app.brand_users_by_user ALTER COLUMN 1 SET STATISTICS 0;

CREATE INDEX brands_by_user ON app.brands USING btree (uuid_send(user_id));
ALTER INDEX app.brands_by_user ALTER COLUMN 1 SET STATISTICS 0;

CREATE INDEX documents_by_time ON app.documents USING btree (brand_id, created_at, id);

CREATE INDEX generated_images_by_time ON app.generated_images USING btree (brand_id, created_at, id);

CREATE INDEX generation_adapters_by_model ON app.generation_adapters USING btree (brand_id, model_id);

CREATE INDEX generations_by_time ON app.generations USING btree (brand_id, created_at, id);

CREATE INDEX generations_open_by_brand ON app.generations USING btree (brand_id) WHERE (status = ANY (ARRAY['pending'::text, 'running'::text]));

CREATE INDEX invitations_by_id ON app.invitations USING btree (uuid_send(id));
ALTER INDEX app.invitations_by_id ALTER COLUMN 1 SET STATISTICS 0;

CREATE INDEX invitations_by_time ON app.invitations USING btree (brand_id, created_at, id);

CREATE INDEX invitations_open_by_email ON app.invitations USING btree (reverse(email), created_at, id) WHERE ((accepted_at IS NULL) AND (revoked_at IS NULL));
ALTER INDEX app.invitations_open_by_email ALTER COLUMN 1 SET STATISTICS 0;

CREATE INDEX job_assets_by_asset ON app.job_assets USING btree (brand_id, asset_id);

CREATE INDEX jobs_by_retry ON app.lora_training_jobs USING btree (brand_id, retry_of) WHERE (retry_of IS NOT NULL);

CREATE INDEX jobs_by_start_model ON app.lora_training_jobs USING btree (brand_id, start_model_id) WHERE (start_model_id IS NOT NULL);

CREATE INDEX jobs_by_time ON app.lora_training_jobs USING btree (brand_id, created_at, id);

CREATE UNIQUE INDEX jobs_one_writer ON app.lora_training_jobs USING btree (brand_id, run_id) WHERE ((run_id IS NOT NULL) AND (status = ANY (ARRAY['pending'::text, 'training'::text])));

CREATE INDEX jobs_open_by_brand ON app.lora_training_jobs USING btree (brand_id, created_at) WHERE (status = ANY (ARRAY['pending'::text, 'training'::text]));

CREATE INDEX models_by_time ON app.models USING btree (brand_id, created_at, id);

CREATE INDEX upload_objects_by_asset ON app.upload_objects USING btree (brand_id, asset_id) WHERE (asset_id IS NOT NULL);

CREATE INDEX upload_objects_by_document ON app.upload_objects USING btree (brand_id, document_id) WHERE (document_id IS NOT NULL);

CREATE INDEX uploads_by_end ON app.uploads USING btree ((expires_at AT TIME ZONE 'UTC'::text));
ALTER INDEX app.uploads_by_end ALTER COLUMN 1 SET STATISTICS 0;

CREATE INDEX uploads_by_time ON app.uploads USING btree (brand_id, created_at, id);

CREATE INDEX uploads_kept_by_brand ON app.uploads USING btree (brand_id) WHERE (swept_at IS NULL);

CREATE INDEX uploads_open_by_user ON app.uploads USING btree (uuid_send(user_id)) WHERE (status = 'pending'::text);
ALTER INDEX app.uploads_open_by_user ALTER COLUMN 1 SET STATISTICS 0;

CREATE INDEX attempts_by_due ON identity.attempts USING btree (due);

CREATE INDEX sessions_by_user ON identity.sessions USING btree (user_id, created_at);

CREATE INDEX subjects_by_user ON identity.subjects USING btree (user_id);

CREATE TRIGGER actor_is_admin AFTER DELETE OR UPDATE ON app.brand_users FOR EACH ROW WHEN ((CURRENT_USER = 'authenticated'::name)) EXECUTE FUNCTION private.tg_actor_is_admin();

CREATE TRIGGER add_first_admin AFTER INSERT ON app.brands FOR EACH ROW EXECUTE FUNCTION private.tg_add_first_admin();

CREATE TRIGGER announce_credentials AFTER UPDATE OF revoked_at ON app.api_keys FOR EACH ROW EXECUTE FUNCTION private.tg_announce_credentials();

CREATE TRIGGER announce_credentials AFTER DELETE ON app.brand_users FOR EACH ROW EXECUTE FUNCTION private.tg_announce_credentials();

CREATE TRIGGER announce_event AFTER INSERT ON app.job_events FOR EACH ROW EXECUTE FUNCTION private.tg_announce_event();

CREATE TRIGGER announce_queue AFTER DELETE ON app.brand_users FOR EACH STATEMENT EXECUTE FUNCTION private.tg_announce_queue();

CREATE TRIGGER announce_queue AFTER INSERT OR DELETE ON app.lora_training_jobs FOR EACH STATEMENT EXECUTE FUNCTION private.tg_announce_queue();

CREATE TRIGGER announce_step AFTER UPDATE OF status, cancel_requested_at ON app.lora_training_jobs FOR EACH ROW WHEN (((old.status <> new.status) OR (old.cancel_requested_at IS DISTINCT FROM new.cancel_requested_at))) EXECUTE FUNCTION private.tg_announce_queue();

CREATE TRIGGER asset_guard BEFORE DELETE ON app.brand_assets FOR EACH ROW EXECUTE FUNCTION app.tg_asset_guard();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.api_keys FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.asset_captions FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.brand_assets FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.brand_limits FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.brand_usage FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.brand_users FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.documents FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.generated_images FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.generation_adapters FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.generations FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.idempotency_keys FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.invitations FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.job_assets FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.job_events FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.lora_training_jobs FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.models FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.numbers FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.upload_objects FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.uploads FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER creator_is_admin AFTER INSERT ON app.api_keys FOR EACH ROW WHEN ((CURRENT_USER = 'authenticated'::name)) EXECUTE FUNCTION private.tg_creator_is_admin();

CREATE TRIGGER creator_is_admin AFTER INSERT ON app.invitations FOR EACH ROW WHEN ((CURRENT_USER = 'authenticated'::name)) EXECUTE FUNCTION private.tg_creator_is_admin();

CREATE TRIGGER creator_is_member AFTER INSERT ON app.generations FOR EACH ROW WHEN ((CURRENT_USER = 'authenticated'::name)) EXECUTE FUNCTION private.tg_creator_is_member();

CREATE TRIGGER creator_is_member AFTER INSERT ON app.lora_training_jobs FOR EACH ROW WHEN ((CURRENT_USER = 'authenticated'::name)) EXECUTE FUNCTION private.tg_creator_is_member();

CREATE TRIGGER creator_is_member AFTER INSERT ON app.uploads FOR EACH ROW WHEN ((CURRENT_USER = 'authenticated'::name)) EXECUTE FUNCTION private.tg_creator_is_member();

CREATE TRIGGER end_credentials AFTER DELETE ON app.brand_users FOR EACH ROW EXECUTE FUNCTION private.tg_end_credentials();

CREATE TRIGGER end_invitations AFTER UPDATE OF role ON app.brand_users FOR EACH ROW WHEN (((old.role = 'admin'::text) AND (new.role <> 'admin'::text))) EXECUTE FUNCTION private.tg_end_credentials();

CREATE TRIGGER generation_guard BEFORE UPDATE ON app.generations FOR EACH ROW EXECUTE FUNCTION app.tg_generation_guard();

CREATE TRIGGER job_guard BEFORE UPDATE ON app.lora_training_jobs FOR EACH ROW EXECUTE FUNCTION app.tg_job_guard();

CREATE TRIGGER keep_an_admin AFTER DELETE OR UPDATE ON app.brand_users FOR EACH ROW EXECUTE FUNCTION private.tg_keep_an_admin();

CREATE TRIGGER limit_brands BEFORE INSERT ON app.brands FOR EACH ROW EXECUTE FUNCTION private.tg_limit_brands();

CREATE TRIGGER upload_guard BEFORE UPDATE ON app.uploads FOR EACH ROW EXECUTE FUNCTION app.tg_upload_guard();

CREATE TRIGGER append_only BEFORE INSERT OR DELETE OR UPDATE ON audit.events FOR EACH ROW EXECUTE FUNCTION audit.tg_append_only();

ALTER TABLE audit.events ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER brand_immutable BEFORE UPDATE ON audit.events FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON audit.events FOR EACH STATEMENT EXECUTE FUNCTION audit.tg_append_only();

ALTER TABLE audit.events ENABLE ALWAYS TRIGGER no_truncate;

CREATE TRIGGER brand_immutable BEFORE UPDATE ON storage.objects FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE CONSTRAINT TRIGGER count_bytes AFTER INSERT OR DELETE ON storage.objects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION private.tg_count_bytes();

ALTER TABLE ONLY app.api_keys
    ADD CONSTRAINT api_keys_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.asset_captions
    ADD CONSTRAINT asset_captions_brand_id_asset_id_fkey FOREIGN KEY (brand_id, asset_id) REFERENCES app.brand_assets(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.brand_limits
    ADD CONSTRAINT brand_limits_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.brand_usage
    ADD CONSTRAINT brand_usage_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.brand_users
    ADD CONSTRAINT brand_users_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.documents
    ADD CONSTRAINT documents_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_generation_id_fkey FOREIGN KEY (brand_id, generation_id) REFERENCES app.generations(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_model_id_fkey FOREIGN KEY (brand_id, model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (model_id);

ALTER TABLE ONLY app.generation_adapters
    ADD CONSTRAINT generation_adapters_brand_id_generation_id_fkey FOREIGN KEY (brand_id, generation_id) REFERENCES app.generations(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.generation_adapters
    ADD CONSTRAINT generation_adapters_brand_id_model_id_fkey FOREIGN KEY (brand_id, model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (model_id);

ALTER TABLE ONLY app.generations
    ADD CONSTRAINT generations_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.generations
    ADD CONSTRAINT generations_brand_id_model_id_fkey FOREIGN KEY (brand_id, model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (model_id);

ALTER TABLE ONLY app.idempotency_keys
    ADD CONSTRAINT idempotency_keys_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.invitations
    ADD CONSTRAINT invitations_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.job_assets
    ADD CONSTRAINT job_assets_brand_id_asset_id_fkey FOREIGN KEY (brand_id, asset_id) REFERENCES app.brand_assets(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.job_assets
    ADD CONSTRAINT job_assets_brand_id_job_id_fkey FOREIGN KEY (brand_id, job_id) REFERENCES app.lora_training_jobs(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_brand_id_generation_id_fkey FOREIGN KEY (brand_id, generation_id) REFERENCES app.generations(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_brand_id_job_id_fkey FOREIGN KEY (brand_id, job_id) REFERENCES app.lora_training_jobs(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_brand_id_model_id_fkey FOREIGN KEY (brand_id, model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (model_id);

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_brand_id_retry_of_fkey FOREIGN KEY (brand_id, retry_of) REFERENCES app.lora_training_jobs(brand_id, id) ON DELETE SET NULL (retry_of);

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_brand_id_start_model_id_fkey FOREIGN KEY (brand_id, start_model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (start_model_id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_job_id_fkey FOREIGN KEY (brand_id, job_id) REFERENCES app.lora_training_jobs(brand_id, id) ON DELETE SET NULL (job_id);

ALTER TABLE ONLY app.numbers
    ADD CONSTRAINT numbers_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.upload_objects
    ADD CONSTRAINT upload_objects_brand_id_asset_id_fkey FOREIGN KEY (brand_id, asset_id) REFERENCES app.brand_assets(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.upload_objects
    ADD CONSTRAINT upload_objects_brand_id_document_id_fkey FOREIGN KEY (brand_id, document_id) REFERENCES app.documents(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.upload_objects
    ADD CONSTRAINT upload_objects_brand_id_upload_id_fkey FOREIGN KEY (brand_id, upload_id) REFERENCES app.uploads(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.uploads
    ADD CONSTRAINT uploads_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY identity.sessions
    ADD CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES identity.users(id);

ALTER TABLE ONLY identity.subjects
    ADD CONSTRAINT subjects_user_id_fkey FOREIGN KEY (user_id) REFERENCES identity.users(id);

ALTER TABLE ONLY storage.objects
    ADD CONSTRAINT objects_bucket_id_fkey FOREIGN KEY (bucket_id) REFERENCES storage.buckets(id);

CREATE POLICY admin_delete ON app.brand_assets FOR DELETE TO authenticated USING (( SELECT private.is_admin() AS is_admin));

CREATE POLICY admin_delete ON app.brand_users FOR DELETE TO authenticated USING (( SELECT private.is_admin() AS is_admin));

CREATE POLICY admin_delete ON app.documents FOR DELETE TO authenticated USING (( SELECT private.is_admin() AS is_admin));

CREATE POLICY admin_delete ON app.lora_training_jobs FOR DELETE TO authenticated USING (( SELECT private.is_admin() AS is_admin));

CREATE POLICY admin_delete ON app.models FOR DELETE TO authenticated USING (( SELECT private.is_admin() AS is_admin));

CREATE POLICY admin_insert ON app.api_keys FOR INSERT TO authenticated WITH CHECK (((user_id = ( SELECT private.uid() AS uid)) AND ( SELECT private.is_admin() AS is_admin)));

CREATE POLICY admin_insert ON app.invitations FOR INSERT TO authenticated WITH CHECK (((user_id = ( SELECT private.uid() AS uid)) AND ( SELECT private.is_admin() AS is_admin)));

CREATE POLICY admin_select ON app.invitations FOR SELECT TO authenticated USING (( SELECT private.is_admin() AS is_admin));

CREATE POLICY admin_update ON app.api_keys FOR UPDATE TO authenticated USING (((revoked_at IS NULL) AND ( SELECT private.is_admin() AS is_admin))) WITH CHECK ((revoked_at IS NOT NULL));

CREATE POLICY admin_update ON app.brand_users FOR UPDATE TO authenticated USING (( SELECT private.is_admin() AS is_admin)) WITH CHECK (( SELECT private.is_admin() AS is_admin));

CREATE POLICY admin_update ON app.invitations FOR UPDATE TO authenticated USING (((revoked_at IS NULL) AND (accepted_at IS NULL) AND ( SELECT private.is_admin() AS is_admin))) WITH CHECK ((revoked_at IS NOT NULL));

ALTER TABLE app.api_keys ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.asset_captions ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.brand_assets ENABLE ROW LEVEL SECURITY;

CREATE POLICY brand_isolation_system ON app.api_keys AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.asset_captions AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.brand_assets AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.brand_limits AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.brand_usage AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.brand_users AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.brands AS RESTRICTIVE TO brand_system USING ((((id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[id] IS NOT NULL)));

CREATE POLICY brand_isolation_system ON app.documents AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.generated_images AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.generation_adapters AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.generations AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.idempotency_keys AS RESTRICTIVE TO brand_system USING (false);

CREATE POLICY brand_isolation_system ON app.invitations AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.job_assets AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.job_events AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.lora_training_jobs AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.models AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.numbers AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.upload_objects AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_system ON app.uploads AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_user ON app.api_keys AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.asset_captions AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.brand_assets AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.brand_limits AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.brand_usage AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.brand_users AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.brands AS RESTRICTIVE FOR SELECT TO authenticated USING ((((id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[id] IS NOT NULL)));

CREATE POLICY brand_isolation_user ON app.documents AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.generated_images AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.generation_adapters AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.generations AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.idempotency_keys AS RESTRICTIVE TO authenticated USING ((((caller, true) = ( SELECT s.caller,
    (s.caller IS NOT NULL)
   FROM ( SELECT private.my_caller() AS my_caller
         OFFSET 0) s(caller))) AND ((( SELECT private.claimed_caller_object() AS claimed_caller_object))[caller] IS NOT NULL))) WITH CHECK ((caller = ( SELECT private.my_caller() AS my_caller)));

CREATE POLICY brand_isolation_user ON app.invitations AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.job_assets AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.job_events AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.lora_training_jobs AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.models AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.numbers AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.upload_objects AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

CREATE POLICY brand_isolation_user ON app.uploads AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

ALTER TABLE app.brand_limits ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.brand_usage ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.brand_users ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.brands ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.caller_usage ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.dispatch_lease ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.documents ENABLE ROW LEVEL SECURITY;

CREATE POLICY function_owner ON app.api_keys TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.asset_captions TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.brand_assets TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.brand_limits TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.brand_usage TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.brand_users TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.brands TO onbrand_definer, onbrand_operator USING (true);

CREATE POLICY function_owner ON app.caller_usage TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.dispatch_lease TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.documents TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.generated_images TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.generation_adapters TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.generations TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.idempotency_keys TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.invitations TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.job_assets TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.job_events TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.lora_training_jobs TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.models TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.numbers TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.upload_objects TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON app.uploads TO onbrand_definer USING (true) WITH CHECK (true);

ALTER TABLE app.generated_images ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.generation_adapters ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.generations ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.idempotency_keys ENABLE ROW LEVEL SECURITY;

CREATE POLICY identity_select ON app.brand_users FOR SELECT TO onbrand_identity USING (((brand_id = ( SELECT private.my_brand() AS my_brand)) AND ((user_id = ( SELECT private.uid() AS uid)) OR ( SELECT private.is_admin() AS is_admin))));

ALTER TABLE app.invitations ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.job_assets ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.job_events ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.lora_training_jobs ENABLE ROW LEVEL SECURITY;

CREATE POLICY member_insert ON app.asset_captions FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.brand_assets FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.brands FOR INSERT TO authenticated WITH CHECK (((user_id = ( SELECT private.uid() AS uid)) AND (( SELECT private.ctx('bound_to'::text) AS ctx) IS NULL)));

CREATE POLICY member_insert ON app.documents FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.generations FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.lora_training_jobs FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.uploads FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_select ON app.asset_captions FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.brand_assets FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.brand_limits FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.brand_usage FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.brand_users FOR SELECT TO authenticated USING (((user_id = ( SELECT private.uid() AS uid)) OR ( SELECT private.is_admin() AS is_admin)));

CREATE POLICY member_select ON app.brands FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.documents FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.generated_images FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.generation_adapters FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.generations FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.job_assets FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.job_events FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.lora_training_jobs FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.models FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.upload_objects FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.uploads FOR SELECT TO authenticated USING (true);

ALTER TABLE app.models ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.numbers ENABLE ROW LEVEL SECURITY;

CREATE POLICY operator_all ON app.brand_limits TO onbrand_operator USING (true) WITH CHECK (true);

CREATE POLICY own_document ON app.upload_objects AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (((document_id IS NULL) OR (EXISTS ( SELECT 1
   FROM app.documents d
  WHERE ((d.brand_id = upload_objects.brand_id) AND (d.id = upload_objects.document_id) AND (d.user_id = ( SELECT private.uid() AS uid)))))));

CREATE POLICY own_keys ON app.idempotency_keys TO authenticated USING (true) WITH CHECK (true);

CREATE POLICY owner_delete ON app.generated_images FOR DELETE TO authenticated USING ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY owner_insert ON app.generation_adapters FOR INSERT TO authenticated WITH CHECK ((EXISTS ( SELECT 1
   FROM (app.generations g
     JOIN app.models m ON (((m.brand_id = g.brand_id) AND (m.model_type = g.model_type))))
  WHERE ((g.brand_id = generation_adapters.brand_id) AND (g.id = generation_adapters.generation_id) AND (g.user_id = ( SELECT private.uid() AS uid)) AND (g.status = 'pending'::text) AND (m.id = generation_adapters.model_id) AND (m.name = generation_adapters.model_name) AND (m.sha256 = generation_adapters.sha256) AND ((generation_adapters.index > 0) OR (g.model_id = m.id))))));

CREATE POLICY owner_insert ON app.job_assets FOR INSERT TO authenticated WITH CHECK ((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_assets.brand_id) AND (j.id = job_assets.job_id) AND (j.user_id = ( SELECT private.uid() AS uid)) AND (j.status = 'pending'::text)))));

CREATE POLICY owner_insert ON app.upload_objects FOR INSERT TO authenticated WITH CHECK (((EXISTS ( SELECT 1
   FROM app.uploads u
  WHERE ((u.brand_id = upload_objects.brand_id) AND (u.id = upload_objects.upload_id) AND (u.user_id = ( SELECT private.uid() AS uid)) AND (u.status = 'completed'::text)))) AND ((document_id IS NOT NULL) OR (EXISTS ( SELECT 1
   FROM app.brand_assets a
  WHERE ((a.brand_id = upload_objects.brand_id) AND (a.id = upload_objects.asset_id) AND (a.user_id = ( SELECT private.uid() AS uid))))))));

CREATE POLICY owner_update ON app.generations FOR UPDATE TO authenticated USING ((user_id = ( SELECT private.uid() AS uid))) WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY owner_update ON app.lora_training_jobs FOR UPDATE TO authenticated USING ((user_id = ( SELECT private.uid() AS uid))) WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY owner_update ON app.uploads FOR UPDATE TO authenticated USING ((user_id = ( SELECT private.uid() AS uid))) WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY reader_select ON app.api_keys FOR SELECT TO authenticated USING ((((user_id = ( SELECT private.uid() AS uid)) AND (( SELECT private.has_all_scopes() AS has_all_scopes) OR ( SELECT private.has_scope('manage'::text) AS has_scope))) OR ( SELECT private.is_admin() AS is_admin)));

CREATE POLICY scope_delete ON app.brand_assets AS RESTRICTIVE FOR DELETE TO authenticated USING (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_delete ON app.brand_users AS RESTRICTIVE FOR DELETE TO authenticated USING (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_delete ON app.documents AS RESTRICTIVE FOR DELETE TO authenticated USING (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_delete ON app.generated_images AS RESTRICTIVE FOR DELETE TO authenticated USING (( SELECT private.has_scope('generate'::text) AS has_scope));

CREATE POLICY scope_delete ON app.lora_training_jobs AS RESTRICTIVE FOR DELETE TO authenticated USING (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_delete ON app.models AS RESTRICTIVE FOR DELETE TO authenticated USING (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_insert ON app.api_keys AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (((( SELECT private.ctx('key_id'::text) AS ctx) IS NULL) AND ( SELECT private.has_scope('manage'::text) AS has_scope)));

CREATE POLICY scope_insert ON app.asset_captions AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('upload'::text) AS has_scope));

CREATE POLICY scope_insert ON app.brand_assets AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('upload'::text) AS has_scope));

CREATE POLICY scope_insert ON app.brands AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_insert ON app.documents AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('upload'::text) AS has_scope));

CREATE POLICY scope_insert ON app.generation_adapters AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('generate'::text) AS has_scope));

CREATE POLICY scope_insert ON app.generations AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('generate'::text) AS has_scope));

CREATE POLICY scope_insert ON app.invitations AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_insert ON app.job_assets AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('train'::text) AS has_scope));

CREATE POLICY scope_insert ON app.lora_training_jobs AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('train'::text) AS has_scope));

CREATE POLICY scope_insert ON app.upload_objects AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('upload'::text) AS has_scope));

CREATE POLICY scope_insert ON app.uploads AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('upload'::text) AS has_scope));

CREATE POLICY scope_update ON app.api_keys AS RESTRICTIVE FOR UPDATE TO authenticated USING (((( SELECT private.ctx('key_id'::text) AS ctx) IS NULL) AND ( SELECT private.has_scope('manage'::text) AS has_scope))) WITH CHECK (((( SELECT private.ctx('key_id'::text) AS ctx) IS NULL) AND ( SELECT private.has_scope('manage'::text) AS has_scope)));

CREATE POLICY scope_update ON app.brand_users AS RESTRICTIVE FOR UPDATE TO authenticated USING (( SELECT private.has_scope('manage'::text) AS has_scope)) WITH CHECK (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_update ON app.generations AS RESTRICTIVE FOR UPDATE TO authenticated USING (( SELECT private.has_scope('generate'::text) AS has_scope)) WITH CHECK (( SELECT private.has_scope('generate'::text) AS has_scope));

CREATE POLICY scope_update ON app.invitations AS RESTRICTIVE FOR UPDATE TO authenticated USING (( SELECT private.has_scope('manage'::text) AS has_scope)) WITH CHECK (( SELECT private.has_scope('manage'::text) AS has_scope));

CREATE POLICY scope_update ON app.lora_training_jobs AS RESTRICTIVE FOR UPDATE TO authenticated USING (( SELECT private.has_scope('train'::text) AS has_scope)) WITH CHECK (( SELECT private.has_scope('train'::text) AS has_scope));

CREATE POLICY scope_update ON app.uploads AS RESTRICTIVE FOR UPDATE TO authenticated USING (( SELECT private.has_scope('upload'::text) AS has_scope)) WITH CHECK (( SELECT private.has_scope('upload'::text) AS has_scope));

CREATE POLICY system_insert ON app.generated_images FOR INSERT TO brand_system WITH CHECK ((EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = generated_images.brand_id) AND (g.id = generated_images.generation_id) AND (g.user_id = generated_images.user_id) AND (NOT (g.model_id IS DISTINCT FROM generated_images.model_id)) AND (g.status = 'running'::text)))));

CREATE POLICY system_insert ON app.job_events FOR INSERT TO brand_system WITH CHECK (((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_events.brand_id) AND (j.id = job_events.job_id)))) OR (EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = job_events.brand_id) AND (g.id = job_events.generation_id))))));

CREATE POLICY system_insert ON app.models FOR INSERT TO brand_system WITH CHECK ((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = models.brand_id) AND (j.id = models.job_id) AND (j.model_type = models.model_type) AND (j.user_id = models.user_id) AND (j.status = 'training'::text)))));

CREATE POLICY system_select ON app.asset_captions FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.job_assets ja
  WHERE ((ja.brand_id = asset_captions.brand_id) AND (ja.asset_id = asset_captions.asset_id)))));

CREATE POLICY system_select ON app.brand_assets FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.job_assets ja
  WHERE ((ja.brand_id = brand_assets.brand_id) AND (ja.asset_id = brand_assets.id)))));

CREATE POLICY system_select ON app.brand_limits FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = brand_limits.brand_id) AND (g.status = ANY (ARRAY['pending'::text, 'running'::text]))))));

CREATE POLICY system_select ON app.brands FOR SELECT TO brand_system USING (true);

CREATE POLICY system_select ON app.generated_images FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = generated_images.brand_id) AND (g.id = generated_images.generation_id)))));

CREATE POLICY system_select ON app.generation_adapters FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = generation_adapters.brand_id) AND (g.id = generation_adapters.generation_id)))));

CREATE POLICY system_select ON app.generations FOR SELECT TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'generation'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid)));

CREATE POLICY system_select ON app.job_assets FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_assets.brand_id) AND (j.id = job_assets.job_id) AND (j.status = ANY (ARRAY['pending'::text, 'training'::text]))))));

CREATE POLICY system_select ON app.job_events FOR SELECT TO brand_system USING (((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_events.brand_id) AND (j.id = job_events.job_id)))) OR (EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = job_events.brand_id) AND (g.id = job_events.generation_id))))));

CREATE POLICY system_select ON app.lora_training_jobs FOR SELECT TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'training'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid)));

CREATE POLICY system_select ON app.models FOR SELECT TO brand_system USING (
CASE ( SELECT private.ctx('kind'::text) AS ctx)
    WHEN 'training'::text THEN (EXISTS ( SELECT 1
       FROM app.lora_training_jobs j
      WHERE (j.brand_id = models.brand_id)))
    WHEN 'generation'::text THEN (EXISTS ( SELECT 1
       FROM (app.generation_adapters a
         JOIN app.generations g ON (((g.brand_id = a.brand_id) AND (g.id = a.generation_id))))
      WHERE ((a.brand_id = models.brand_id) AND (a.model_id = models.id) AND (g.status = ANY (ARRAY['pending'::text, 'running'::text])))))
    ELSE false
END);

CREATE POLICY system_update ON app.generations FOR UPDATE TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'generation'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid))) WITH CHECK (true);

CREATE POLICY system_update ON app.lora_training_jobs FOR UPDATE TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'training'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid))) WITH CHECK (true);

ALTER TABLE app.upload_objects ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.uploads ENABLE ROW LEVEL SECURITY;

CREATE POLICY admin_select ON audit.events FOR SELECT TO authenticated USING (( SELECT private.is_admin() AS is_admin));

CREATE POLICY brand_isolation_system ON audit.events AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_user ON audit.events AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

ALTER TABLE audit.events ENABLE ROW LEVEL SECURITY;

CREATE POLICY function_owner ON audit.events TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY operator_select ON audit.events FOR SELECT TO onbrand_operator USING (true);

ALTER TABLE identity.attempts ENABLE ROW LEVEL SECURITY;

CREATE POLICY function_owner ON identity.attempts TO onbrand_identity USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON identity.sessions TO onbrand_identity, onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON identity.subjects TO onbrand_identity USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON identity.users TO onbrand_identity USING (true) WITH CHECK (true);

ALTER TABLE identity.sessions ENABLE ROW LEVEL SECURITY;

ALTER TABLE identity.subjects ENABLE ROW LEVEL SECURITY;

ALTER TABLE identity.users ENABLE ROW LEVEL SECURITY;

ALTER TABLE private.claim_keys ENABLE ROW LEVEL SECURITY;

CREATE POLICY function_owner ON private.claim_keys TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY function_owner ON private.lock_seed TO onbrand_definer USING (true) WITH CHECK (true);

ALTER TABLE private.lock_seed ENABLE ROW LEVEL SECURITY;

CREATE POLICY anyone_select ON storage.buckets FOR SELECT TO authenticated, brand_system USING (true);

CREATE POLICY brand_isolation_system ON storage.objects AS RESTRICTIVE TO brand_system USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.ticket_brand() AS ticket_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.ticket_brand() AS ticket_brand)));

CREATE POLICY brand_isolation_user ON storage.objects AS RESTRICTIVE TO authenticated USING ((((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL)
   FROM ( SELECT private.my_brand() AS my_brand
         OFFSET 0) s(brand))) AND ((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL))) WITH CHECK ((brand_id = ( SELECT private.my_brand() AS my_brand)));

ALTER TABLE storage.buckets ENABLE ROW LEVEL SECURITY;

CREATE POLICY function_owner ON storage.objects TO onbrand_definer USING (true) WITH CHECK (true);

CREATE POLICY member_insert ON storage.objects FOR INSERT TO authenticated WITH CHECK (((bucket_id = ANY (ARRAY['training-data'::text, 'brand-documents'::text])) AND (user_id = ( SELECT private.uid() AS uid))));

CREATE POLICY member_select ON storage.objects FOR SELECT TO authenticated USING (true);

ALTER TABLE storage.objects ENABLE ROW LEVEL SECURITY;

CREATE POLICY owner_or_admin_delete ON storage.objects FOR DELETE TO authenticated USING (
CASE
    WHEN ((bucket_id = 'generated-content'::text) AND (split_part(name, '/'::text, 2) <> 'samples'::text)) THEN (user_id = ( SELECT private.uid() AS uid))
    ELSE ( SELECT private.is_admin() AS is_admin)
END);

CREATE POLICY scope_delete ON storage.objects AS RESTRICTIVE FOR DELETE TO authenticated USING (
CASE
    WHEN ((bucket_id = 'generated-content'::text) AND (split_part(name, '/'::text, 2) <> 'samples'::text)) THEN ( SELECT private.has_scope('generate'::text) AS has_scope)
    ELSE ( SELECT private.has_scope('manage'::text) AS has_scope)
END);

CREATE POLICY scope_insert ON storage.objects AS RESTRICTIVE FOR INSERT TO authenticated WITH CHECK (( SELECT private.has_scope('upload'::text) AS has_scope));

CREATE POLICY system_insert ON storage.objects FOR INSERT TO brand_system WITH CHECK (((user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid) AND
CASE ( SELECT private.ctx('kind'::text) AS ctx)
    WHEN 'training'::text THEN (((bucket_id = 'models'::text) OR ((bucket_id = 'generated-content'::text) AND (split_part(name, '/'::text, 2) = 'samples'::text) AND (split_part(name, '/'::text, 3) = ( SELECT private.ctx('job_id'::text) AS ctx)))) AND (EXISTS ( SELECT 1
       FROM app.lora_training_jobs j
      WHERE ((j.brand_id = objects.brand_id) AND (j.status = 'training'::text)))))
    WHEN 'generation'::text THEN ((bucket_id = 'generated-content'::text) AND (split_part(name, '/'::text, 2) <> 'samples'::text) AND (EXISTS ( SELECT 1
       FROM app.generations g
      WHERE ((g.brand_id = objects.brand_id) AND (g.status = 'running'::text)))))
    ELSE false
END));

CREATE POLICY system_select ON storage.objects FOR SELECT TO brand_system USING (((EXISTS ( SELECT 1
   FROM app.brand_assets a
  WHERE ((a.brand_id = objects.brand_id) AND (a.object_name = objects.name) AND (objects.bucket_id = 'training-data'::text)))) OR (EXISTS ( SELECT 1
   FROM app.models m
  WHERE ((m.brand_id = objects.brand_id) AND (m.object_name = objects.name) AND (objects.bucket_id = 'models'::text))))));

GRANT USAGE ON SCHEMA app TO authenticated;
GRANT USAGE ON SCHEMA app TO brand_system;
GRANT USAGE ON SCHEMA app TO onbrand_definer;
GRANT USAGE ON SCHEMA app TO onbrand_identity;
GRANT USAGE ON SCHEMA app TO onbrand_operator;

GRANT USAGE ON SCHEMA audit TO authenticated;
GRANT USAGE ON SCHEMA audit TO onbrand_definer;
GRANT USAGE ON SCHEMA audit TO onbrand_operator;

GRANT USAGE ON SCHEMA identity TO onbrand_definer;

GRANT USAGE ON SCHEMA private TO authenticated;
GRANT USAGE ON SCHEMA private TO brand_system;
GRANT ALL ON SCHEMA private TO onbrand_definer;
GRANT USAGE ON SCHEMA private TO anon;
GRANT USAGE ON SCHEMA private TO onbrand_dispatcher;
GRANT ALL ON SCHEMA private TO onbrand_identity;
GRANT USAGE ON SCHEMA private TO onbrand_operator;

REVOKE USAGE ON SCHEMA public FROM PUBLIC;

GRANT USAGE ON SCHEMA storage TO authenticated;
GRANT USAGE ON SCHEMA storage TO brand_system;
GRANT USAGE ON SCHEMA storage TO onbrand_definer;

REVOKE ALL ON FUNCTION app.brand_isolation_condition(column_name text, brand_call text) FROM PUBLIC;

REVOKE ALL ON PROCEDURE app.disable_column_statistics(IN t regclass) FROM PUBLIC;

REVOKE ALL ON PROCEDURE app.enable_brand_isolation(IN t regclass) FROM PUBLIC;

REVOKE ALL ON PROCEDURE app.require_scope(IN t regclass, IN verb text, IN scope text) FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_asset_guard() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_brand_immutable() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_generation_guard() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_job_guard() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_upload_guard() FROM PUBLIC;

REVOKE ALL ON FUNCTION audit.has_object_id(action text, d jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION audit.has_object_id(action text, d jsonb) TO onbrand_definer;

REVOKE ALL ON FUNCTION audit.is_valid_detail(d jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION audit.is_valid_detail(d jsonb) TO onbrand_definer;

GRANT SELECT,INSERT ON TABLE audit.events TO onbrand_definer;
GRANT SELECT ON TABLE audit.events TO onbrand_operator;
GRANT SELECT ON TABLE audit.events TO authenticated;

REVOKE ALL ON FUNCTION audit.event_hash(e audit.events) FROM PUBLIC;
GRANT ALL ON FUNCTION audit.event_hash(e audit.events) TO onbrand_definer;

REVOKE ALL ON FUNCTION audit.netstring(value text) FROM PUBLIC;
GRANT ALL ON FUNCTION audit.netstring(value text) TO onbrand_definer;

REVOKE ALL ON FUNCTION audit.tg_append_only() FROM PUBLIC;

REVOKE ALL ON FUNCTION private.accept_invitation(id uuid, hash text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.accept_invitation(id uuid, hash text) TO authenticated;

REVOKE ALL ON FUNCTION private.account_has_room(brand text, n integer, max_waiting integer) FROM PUBLIC;
GRANT ALL ON FUNCTION private.account_has_room(brand text, n integer, max_waiting integer) TO authenticated;

REVOKE ALL ON FUNCTION private.audit_append(brand text, actor text, action text, detail jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION private.audit_append(brand text, actor text, action text, detail jsonb) TO onbrand_operator;

REVOKE ALL ON FUNCTION private.audit_append(brand text, actor text, user_id uuid, credential text, action text, detail jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.change_name(subject uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION private.change_name(subject uuid) TO authenticated;

REVOKE ALL ON FUNCTION private.claimed_brand_id() FROM PUBLIC;
GRANT ALL ON FUNCTION private.claimed_brand_id() TO authenticated;
GRANT ALL ON FUNCTION private.claimed_brand_id() TO brand_system;
GRANT ALL ON FUNCTION private.claimed_brand_id() TO onbrand_owner;
GRANT ALL ON FUNCTION private.claimed_brand_id() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.claimed_brand_object() FROM PUBLIC;
GRANT ALL ON FUNCTION private.claimed_brand_object() TO authenticated;
GRANT ALL ON FUNCTION private.claimed_brand_object() TO brand_system;
GRANT ALL ON FUNCTION private.claimed_brand_object() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.claimed_caller_object() FROM PUBLIC;
GRANT ALL ON FUNCTION private.claimed_caller_object() TO authenticated;
GRANT ALL ON FUNCTION private.claimed_caller_object() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.claims() FROM PUBLIC;
GRANT ALL ON FUNCTION private.claims() TO anon;
GRANT ALL ON FUNCTION private.claims() TO authenticated;
GRANT ALL ON FUNCTION private.claims() TO brand_system;
GRANT ALL ON FUNCTION private.claims() TO onbrand_dispatcher;
GRANT ALL ON FUNCTION private.claims() TO onbrand_owner;
GRANT ALL ON FUNCTION private.claims() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.credentials_name() FROM PUBLIC;
GRANT ALL ON FUNCTION private.credentials_name() TO authenticated;

REVOKE ALL ON FUNCTION private.ctx(name text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.ctx(name text) TO authenticated;
GRANT ALL ON FUNCTION private.ctx(name text) TO brand_system;
GRANT ALL ON FUNCTION private.ctx(name text) TO onbrand_owner;
GRANT ALL ON FUNCTION private.ctx(name text) TO onbrand_identity;

REVOKE ALL ON FUNCTION private.decline_invitation(id uuid, hash text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.decline_invitation(id uuid, hash text) TO authenticated;

REVOKE ALL ON FUNCTION private.email_of(user_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION private.email_of(user_id uuid) TO onbrand_definer;

REVOKE ALL ON FUNCTION private.end_orphaned() FROM PUBLIC;
GRANT ALL ON FUNCTION private.end_orphaned() TO onbrand_dispatcher;

REVOKE ALL ON FUNCTION private.end_sessions(session_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION private.end_sessions(session_id uuid) TO authenticated;

REVOKE ALL ON FUNCTION private.external_user(issuer text, subject text, email text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.external_user(issuer text, subject text, email text) TO anon;

REVOKE ALL ON FUNCTION private.find_invitation(id uuid, hash text) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.find_key(id uuid, hash text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.find_key(id uuid, hash text) TO anon;

REVOKE ALL ON FUNCTION private.find_login(email text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.find_login(email text) TO anon;

REVOKE ALL ON FUNCTION private.find_session(hash text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.find_session(hash text) TO anon;

REVOKE ALL ON FUNCTION private.give_attempt_back(keys text[], max_attempts integer[], seconds integer[]) FROM PUBLIC;
GRANT ALL ON FUNCTION private.give_attempt_back(keys text[], max_attempts integer[], seconds integer[]) TO anon;

REVOKE ALL ON FUNCTION private.has_all_scopes() FROM PUBLIC;
GRANT ALL ON FUNCTION private.has_all_scopes() TO authenticated;
GRANT ALL ON FUNCTION private.has_all_scopes() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.has_scope(scope text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.has_scope(scope text) TO authenticated;
GRANT ALL ON FUNCTION private.has_scope(scope text) TO brand_system;
GRANT ALL ON FUNCTION private.has_scope(scope text) TO onbrand_owner;
GRANT ALL ON FUNCTION private.has_scope(scope text) TO onbrand_identity;

REVOKE ALL ON FUNCTION private.has_valid_session(session_id uuid, user_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION private.has_valid_session(session_id uuid, user_id uuid) TO onbrand_definer;

REVOKE ALL ON FUNCTION private.my_role() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_role() TO authenticated;
GRANT ALL ON FUNCTION private.my_role() TO brand_system;
GRANT ALL ON FUNCTION private.my_role() TO onbrand_owner;
GRANT ALL ON FUNCTION private.my_role() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.is_admin() FROM PUBLIC;
GRANT ALL ON FUNCTION private.is_admin() TO authenticated;
GRANT ALL ON FUNCTION private.is_admin() TO brand_system;
GRANT ALL ON FUNCTION private.is_admin() TO onbrand_owner;
GRANT ALL ON FUNCTION private.is_admin() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.is_credential_valid() FROM PUBLIC;
GRANT ALL ON FUNCTION private.is_credential_valid() TO authenticated;
GRANT ALL ON FUNCTION private.is_credential_valid() TO onbrand_owner;
GRANT ALL ON FUNCTION private.is_credential_valid() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.is_key_valid(revoked_at timestamp with time zone, expires_at timestamp with time zone, at timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.is_session_valid(ended_at timestamp with time zone, expires_at timestamp with time zone, last_seen_at timestamp with time zone, idle interval, at timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.is_signed(scope text, claims text) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.is_unrestricted() FROM PUBLIC;
GRANT ALL ON FUNCTION private.is_unrestricted() TO onbrand_definer;

REVOKE ALL ON FUNCTION private.lead(holder uuid, seconds double precision) FROM PUBLIC;
GRANT ALL ON FUNCTION private.lead(holder uuid, seconds double precision) TO onbrand_dispatcher;

REVOKE ALL ON FUNCTION private.leave_brand(brand text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.leave_brand(brand text) TO authenticated;

REVOKE ALL ON FUNCTION private.link_subject(issuer text, subject text, email text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.link_subject(issuer text, subject text, email text) TO authenticated;

REVOKE ALL ON FUNCTION private.lock_admin(brand text, admin_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.lock_brand(kind text, brand text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.lock_brand(kind text, brand text) TO authenticated;
GRANT ALL ON FUNCTION private.lock_brand(kind text, brand text) TO brand_system;

REVOKE ALL ON FUNCTION private.lock_key(kind text, id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.may_act_in(brand text) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.may_record(action text) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.me() FROM PUBLIC;
GRANT ALL ON FUNCTION private.me() TO authenticated;

REVOKE ALL ON FUNCTION private.member_emails(brand text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.member_emails(brand text) TO authenticated;

REVOKE ALL ON FUNCTION private.must_be_requested(VARIADIC requested text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION private.must_be_requested(VARIADIC requested text[]) TO anon;
GRANT ALL ON FUNCTION private.must_be_requested(VARIADIC requested text[]) TO authenticated;
GRANT ALL ON FUNCTION private.must_be_requested(VARIADIC requested text[]) TO brand_system;
GRANT ALL ON FUNCTION private.must_be_requested(VARIADIC requested text[]) TO onbrand_dispatcher;
GRANT ALL ON FUNCTION private.must_be_requested(VARIADIC requested text[]) TO onbrand_owner;
GRANT ALL ON FUNCTION private.must_be_requested(VARIADIC requested text[]) TO onbrand_identity;

REVOKE ALL ON FUNCTION private.must_be_signed() FROM PUBLIC;
GRANT ALL ON FUNCTION private.must_be_signed() TO anon;
GRANT ALL ON FUNCTION private.must_be_signed() TO authenticated;
GRANT ALL ON FUNCTION private.must_be_signed() TO brand_system;
GRANT ALL ON FUNCTION private.must_be_signed() TO onbrand_dispatcher;
GRANT ALL ON FUNCTION private.must_be_signed() TO onbrand_owner;
GRANT ALL ON FUNCTION private.must_be_signed() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.my_brand() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_brand() TO authenticated;
GRANT ALL ON FUNCTION private.my_brand() TO brand_system;
GRANT ALL ON FUNCTION private.my_brand() TO onbrand_owner;
GRANT ALL ON FUNCTION private.my_brand() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.my_brands(after text, n integer) FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_brands(after text, n integer) TO authenticated;

REVOKE ALL ON FUNCTION private.my_caller() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_caller() TO authenticated;
GRANT ALL ON FUNCTION private.my_caller() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.my_email() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_email() TO onbrand_definer;

REVOKE ALL ON FUNCTION private.my_invitations(at timestamp with time zone, after uuid, max_rows integer) FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_invitations(at timestamp with time zone, after uuid, max_rows integer) TO authenticated;

REVOKE ALL ON FUNCTION private.my_models(families text[], after_brand text, after_base boolean, after_age numeric, after_name text, n integer) FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_models(families text[], after_brand text, after_base boolean, after_age numeric, after_name text, n integer) TO authenticated;

REVOKE ALL ON FUNCTION private.my_sessions() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_sessions() TO authenticated;

REVOKE ALL ON FUNCTION private.my_verified_email() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_verified_email() TO onbrand_definer;

REVOKE ALL ON FUNCTION private.next_number(brand text, series_name text, n integer) FROM PUBLIC;
GRANT ALL ON FUNCTION private.next_number(brand text, series_name text, n integer) TO authenticated;
GRANT ALL ON FUNCTION private.next_number(brand text, series_name text, n integer) TO brand_system;

REVOKE ALL ON FUNCTION private.num_open_uploads() FROM PUBLIC;
GRANT ALL ON FUNCTION private.num_open_uploads() TO authenticated;

REVOKE ALL ON FUNCTION private.open_session(hash text, idle interval, life interval) FROM PUBLIC;
GRANT ALL ON FUNCTION private.open_session(hash text, idle interval, life interval) TO authenticated;

REVOKE ALL ON FUNCTION private.queue() FROM PUBLIC;
GRANT ALL ON FUNCTION private.queue() TO onbrand_dispatcher;

REVOKE ALL ON FUNCTION private.record(brand text, action text, detail jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION private.record(brand text, action text, detail jsonb) TO authenticated;
GRANT ALL ON FUNCTION private.record(brand text, action text, detail jsonb) TO brand_system;

REVOKE ALL ON FUNCTION private.sign_up(email text, password_hash text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.sign_up(email text, password_hash text) TO anon;

REVOKE ALL ON FUNCTION private.stored_bytes(brand text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.stored_bytes(brand text) TO authenticated;
GRANT ALL ON FUNCTION private.stored_bytes(brand text) TO brand_system;

REVOKE ALL ON FUNCTION private.sweep_uploads() FROM PUBLIC;
GRANT ALL ON FUNCTION private.sweep_uploads() TO onbrand_dispatcher;

REVOKE ALL ON FUNCTION private.take_attempt(keys text[], max_attempts integer[], seconds integer[]) FROM PUBLIC;
GRANT ALL ON FUNCTION private.take_attempt(keys text[], max_attempts integer[], seconds integer[]) TO anon;

REVOKE ALL ON FUNCTION private.tg_actor_is_admin() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_actor_is_admin() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_add_first_admin() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_add_first_admin() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_announce_credentials() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_announce_credentials() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_announce_event() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_announce_event() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_announce_queue() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_announce_queue() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_count_bytes() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_count_bytes() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_creator_is_admin() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_creator_is_admin() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_creator_is_member() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_creator_is_member() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_end_credentials() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_end_credentials() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_keep_an_admin() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_keep_an_admin() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_limit_brands() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_limit_brands() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.ticket_brand() FROM PUBLIC;
GRANT ALL ON FUNCTION private.ticket_brand() TO brand_system;
GRANT ALL ON FUNCTION private.ticket_brand() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.transaction_stamp() FROM PUBLIC;

REVOKE ALL ON FUNCTION private.uid() FROM PUBLIC;
GRANT ALL ON FUNCTION private.uid() TO authenticated;
GRANT ALL ON FUNCTION private.uid() TO brand_system;
GRANT ALL ON FUNCTION private.uid() TO onbrand_owner;
GRANT ALL ON FUNCTION private.uid() TO onbrand_identity;

GRANT SELECT ON TABLE app.api_keys TO onbrand_definer;

GRANT SELECT(id) ON TABLE app.api_keys TO authenticated;

GRANT SELECT(brand_id),INSERT(brand_id) ON TABLE app.api_keys TO authenticated;

GRANT SELECT(user_id),INSERT(user_id) ON TABLE app.api_keys TO authenticated;

GRANT SELECT(name),INSERT(name) ON TABLE app.api_keys TO authenticated;

GRANT SELECT(prefix) ON TABLE app.api_keys TO authenticated;

GRANT INSERT(hash) ON TABLE app.api_keys TO authenticated;

GRANT SELECT(scopes),INSERT(scopes) ON TABLE app.api_keys TO authenticated;

GRANT SELECT(created_at) ON TABLE app.api_keys TO authenticated;

GRANT SELECT(expires_at),INSERT(expires_at) ON TABLE app.api_keys TO authenticated;

GRANT UPDATE(last_used_at) ON TABLE app.api_keys TO onbrand_definer;
GRANT SELECT(last_used_at) ON TABLE app.api_keys TO authenticated;

GRANT UPDATE(revoked_at) ON TABLE app.api_keys TO onbrand_definer;
GRANT SELECT(revoked_at),UPDATE(revoked_at) ON TABLE app.api_keys TO authenticated;

GRANT SELECT ON TABLE app.asset_captions TO authenticated;
GRANT SELECT ON TABLE app.asset_captions TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(asset_id) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(version) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(caption) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(user_id) ON TABLE app.asset_captions TO authenticated;

GRANT SELECT,DELETE ON TABLE app.brand_assets TO authenticated;
GRANT SELECT ON TABLE app.brand_assets TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(user_id) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(name) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(type) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(object) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(object_name) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(sha256) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(content_type) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(bytes) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(width) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(height) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(metadata) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(features) ON TABLE app.brand_assets TO authenticated;

GRANT SELECT ON TABLE app.brand_limits TO authenticated;
GRANT SELECT,INSERT,UPDATE ON TABLE app.brand_limits TO onbrand_operator;
GRANT SELECT ON TABLE app.brand_limits TO brand_system;

GRANT SELECT(brand_id) ON TABLE app.brand_limits TO onbrand_definer;

GRANT SELECT(weight) ON TABLE app.brand_limits TO onbrand_definer;

GRANT SELECT(max_running_trainings) ON TABLE app.brand_limits TO onbrand_definer;

GRANT SELECT ON TABLE app.brand_usage TO authenticated;
GRANT SELECT,INSERT,UPDATE ON TABLE app.brand_usage TO onbrand_definer;

GRANT SELECT,INSERT,DELETE ON TABLE app.brand_users TO onbrand_definer;
GRANT SELECT,DELETE ON TABLE app.brand_users TO authenticated;
GRANT SELECT ON TABLE app.brand_users TO onbrand_identity;

GRANT UPDATE(role) ON TABLE app.brand_users TO authenticated;

GRANT UPDATE(created_at) ON TABLE app.brand_users TO onbrand_definer;

GRANT SELECT ON TABLE app.brands TO onbrand_definer;
GRANT SELECT ON TABLE app.brands TO onbrand_operator;
GRANT SELECT ON TABLE app.brands TO authenticated;
GRANT SELECT ON TABLE app.brands TO brand_system;

GRANT INSERT(id) ON TABLE app.brands TO authenticated;
GRANT SELECT(id) ON TABLE app.brands TO onbrand_definer;

GRANT INSERT(name) ON TABLE app.brands TO authenticated;

GRANT INSERT(home_region) ON TABLE app.brands TO authenticated;

GRANT INSERT(user_id) ON TABLE app.brands TO authenticated;
GRANT SELECT(user_id) ON TABLE app.brands TO onbrand_definer;

GRANT SELECT,INSERT,UPDATE ON TABLE app.caller_usage TO onbrand_definer;

GRANT SELECT,INSERT,UPDATE ON TABLE app.dispatch_lease TO onbrand_definer;

GRANT SELECT,DELETE ON TABLE app.documents TO authenticated;

GRANT INSERT(brand_id) ON TABLE app.documents TO authenticated;

GRANT INSERT(user_id) ON TABLE app.documents TO authenticated;

GRANT INSERT(name) ON TABLE app.documents TO authenticated;

GRANT INSERT(version) ON TABLE app.documents TO authenticated;

GRANT INSERT(title) ON TABLE app.documents TO authenticated;

GRANT INSERT(object_name) ON TABLE app.documents TO authenticated;

GRANT INSERT(content_type) ON TABLE app.documents TO authenticated;

GRANT INSERT(bytes) ON TABLE app.documents TO authenticated;

GRANT INSERT(num_pages) ON TABLE app.documents TO authenticated;

GRANT INSERT(sha256) ON TABLE app.documents TO authenticated;

GRANT SELECT,DELETE ON TABLE app.generated_images TO authenticated;
GRANT SELECT ON TABLE app.generated_images TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.generated_images TO brand_system;
GRANT SELECT(brand_id) ON TABLE app.generated_images TO onbrand_definer;

GRANT INSERT(generation_id) ON TABLE app.generated_images TO brand_system;
GRANT SELECT(generation_id) ON TABLE app.generated_images TO onbrand_definer;

GRANT INSERT(model_id) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(user_id) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(index) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(seed) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(object_name) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(content_type) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(width) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(height) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(bytes) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(sha256) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(receipt) ON TABLE app.generated_images TO brand_system;

GRANT SELECT ON TABLE app.generation_adapters TO authenticated;
GRANT SELECT ON TABLE app.generation_adapters TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.generation_adapters TO authenticated;

GRANT INSERT(generation_id) ON TABLE app.generation_adapters TO authenticated;

GRANT INSERT(index) ON TABLE app.generation_adapters TO authenticated;

GRANT INSERT(model_id) ON TABLE app.generation_adapters TO authenticated;

GRANT INSERT(model_name) ON TABLE app.generation_adapters TO authenticated;

GRANT INSERT(sha256) ON TABLE app.generation_adapters TO authenticated;

GRANT INSERT(scale) ON TABLE app.generation_adapters TO authenticated;

GRANT SELECT ON TABLE app.generations TO authenticated;
GRANT SELECT ON TABLE app.generations TO brand_system;

GRANT SELECT(id) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(brand_id) ON TABLE app.generations TO authenticated;
GRANT SELECT(brand_id) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(user_id) ON TABLE app.generations TO authenticated;
GRANT SELECT(user_id) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(model_id) ON TABLE app.generations TO authenticated;

GRANT INSERT(model_type) ON TABLE app.generations TO authenticated;

GRANT INSERT(model_name) ON TABLE app.generations TO authenticated;

GRANT INSERT(prompt) ON TABLE app.generations TO authenticated;

GRANT INSERT(negative_prompt) ON TABLE app.generations TO authenticated;

GRANT INSERT(num_images) ON TABLE app.generations TO authenticated;
GRANT SELECT(num_images) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(width) ON TABLE app.generations TO authenticated;

GRANT INSERT(height) ON TABLE app.generations TO authenticated;

GRANT INSERT(seed) ON TABLE app.generations TO authenticated;

GRANT INSERT(num_inference_steps) ON TABLE app.generations TO authenticated;

GRANT INSERT(guidance_scale) ON TABLE app.generations TO authenticated;

GRANT INSERT(true_cfg_scale) ON TABLE app.generations TO authenticated;

GRANT INSERT(lora_scale) ON TABLE app.generations TO authenticated;

GRANT INSERT(output_format) ON TABLE app.generations TO authenticated;

GRANT UPDATE(status) ON TABLE app.generations TO brand_system;
GRANT SELECT(status),UPDATE(status) ON TABLE app.generations TO onbrand_definer;

GRANT UPDATE(progress) ON TABLE app.generations TO brand_system;

GRANT UPDATE(error) ON TABLE app.generations TO brand_system;
GRANT UPDATE(error) ON TABLE app.generations TO onbrand_definer;

GRANT UPDATE(cancel_requested_at) ON TABLE app.generations TO authenticated;
GRANT SELECT(cancel_requested_at) ON TABLE app.generations TO onbrand_definer;

GRANT UPDATE(heartbeat_at) ON TABLE app.generations TO brand_system;
GRANT SELECT(heartbeat_at) ON TABLE app.generations TO onbrand_definer;

GRANT SELECT(created_at) ON TABLE app.generations TO onbrand_definer;

GRANT UPDATE(started_at) ON TABLE app.generations TO brand_system;

GRANT UPDATE(completed_at) ON TABLE app.generations TO brand_system;
GRANT UPDATE(completed_at) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(sampler) ON TABLE app.generations TO authenticated;

GRANT INSERT(exclusive) ON TABLE app.generations TO authenticated;

GRANT INSERT(preview_every) ON TABLE app.generations TO authenticated;

GRANT UPDATE(num_lost) ON TABLE app.generations TO brand_system;

GRANT INSERT(output_compression) ON TABLE app.generations TO authenticated;

GRANT SELECT,DELETE ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(brand_id) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(user_id) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(key) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(route) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(request_sha256) ON TABLE app.idempotency_keys TO authenticated;

GRANT UPDATE(status) ON TABLE app.idempotency_keys TO authenticated;

GRANT UPDATE(body) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(key_id) ON TABLE app.idempotency_keys TO authenticated;

GRANT SELECT ON TABLE app.invitations TO onbrand_definer;

GRANT SELECT(id) ON TABLE app.invitations TO authenticated;

GRANT SELECT(brand_id),INSERT(brand_id) ON TABLE app.invitations TO authenticated;

GRANT SELECT(user_id),INSERT(user_id) ON TABLE app.invitations TO authenticated;

GRANT SELECT(email),INSERT(email) ON TABLE app.invitations TO authenticated;

GRANT SELECT(role),INSERT(role) ON TABLE app.invitations TO authenticated;

GRANT INSERT(hash) ON TABLE app.invitations TO authenticated;

GRANT SELECT(created_at) ON TABLE app.invitations TO authenticated;

GRANT SELECT(expires_at),INSERT(expires_at) ON TABLE app.invitations TO authenticated;

GRANT UPDATE(accepted_at) ON TABLE app.invitations TO onbrand_definer;
GRANT SELECT(accepted_at) ON TABLE app.invitations TO authenticated;

GRANT UPDATE(accepted_by) ON TABLE app.invitations TO onbrand_definer;
GRANT SELECT(accepted_by) ON TABLE app.invitations TO authenticated;

GRANT UPDATE(revoked_at) ON TABLE app.invitations TO onbrand_definer;
GRANT SELECT(revoked_at),UPDATE(revoked_at) ON TABLE app.invitations TO authenticated;

GRANT SELECT(declined) ON TABLE app.invitations TO authenticated;
GRANT UPDATE(declined) ON TABLE app.invitations TO onbrand_definer;

GRANT SELECT ON TABLE app.job_assets TO authenticated;
GRANT SELECT ON TABLE app.job_assets TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.job_assets TO authenticated;

GRANT INSERT(job_id) ON TABLE app.job_assets TO authenticated;

GRANT INSERT(asset_id) ON TABLE app.job_assets TO authenticated;

GRANT SELECT ON TABLE app.job_events TO authenticated;
GRANT SELECT ON TABLE app.job_events TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.job_events TO brand_system;
GRANT SELECT(brand_id),INSERT(brand_id) ON TABLE app.job_events TO onbrand_definer;

GRANT SELECT(subject_id) ON TABLE app.job_events TO onbrand_definer;

GRANT INSERT(seq) ON TABLE app.job_events TO brand_system;
GRANT SELECT(seq),INSERT(seq) ON TABLE app.job_events TO onbrand_definer;

GRANT INSERT(job_id) ON TABLE app.job_events TO brand_system;
GRANT INSERT(job_id) ON TABLE app.job_events TO onbrand_definer;

GRANT INSERT(generation_id) ON TABLE app.job_events TO brand_system;
GRANT INSERT(generation_id) ON TABLE app.job_events TO onbrand_definer;

GRANT INSERT(kind) ON TABLE app.job_events TO brand_system;
GRANT INSERT(kind) ON TABLE app.job_events TO onbrand_definer;

GRANT INSERT(data) ON TABLE app.job_events TO brand_system;
GRANT INSERT(data) ON TABLE app.job_events TO onbrand_definer;

GRANT SELECT,DELETE ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT ON TABLE app.lora_training_jobs TO brand_system;

GRANT SELECT(id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(brand_id) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(brand_id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(user_id) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(user_id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(name),UPDATE(name) ON TABLE app.lora_training_jobs TO authenticated;

GRANT INSERT(model_type) ON TABLE app.lora_training_jobs TO authenticated;

GRANT INSERT(training_config) ON TABLE app.lora_training_jobs TO authenticated;

GRANT UPDATE(status) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(status),UPDATE(status) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(progress) ON TABLE app.lora_training_jobs TO brand_system;

GRANT INSERT(provider) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(provider) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(provider_job_id) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(provider_job_id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(attempts) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(attempts) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(model_id) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(model_url) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(sample_images_urls) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(error) ON TABLE app.lora_training_jobs TO brand_system;
GRANT UPDATE(error) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(metrics) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(cancel_requested_at) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(cancel_requested_at) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(heartbeat_at) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(heartbeat_at) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT SELECT(created_at) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(started_at) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(completed_at) ON TABLE app.lora_training_jobs TO brand_system;
GRANT UPDATE(completed_at) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(num_workers) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(num_workers) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(waiting_for) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(waiting_for) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(waiting_since) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(waiting_since) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(start_model_id) ON TABLE app.lora_training_jobs TO authenticated;

GRANT INSERT(retry_of) ON TABLE app.lora_training_jobs TO authenticated;

GRANT INSERT(run_id) ON TABLE app.lora_training_jobs TO authenticated;

GRANT UPDATE(stop_requested_at) ON TABLE app.lora_training_jobs TO authenticated;

GRANT SELECT,DELETE ON TABLE app.models TO authenticated;
GRANT SELECT ON TABLE app.models TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.models TO brand_system;
GRANT SELECT(brand_id) ON TABLE app.models TO onbrand_definer;

GRANT INSERT(job_id) ON TABLE app.models TO brand_system;

GRANT INSERT(user_id) ON TABLE app.models TO brand_system;

GRANT INSERT(model_type) ON TABLE app.models TO brand_system;

GRANT INSERT(version) ON TABLE app.models TO brand_system;

GRANT SELECT(name) ON TABLE app.models TO onbrand_definer;

GRANT INSERT(object_name) ON TABLE app.models TO brand_system;

GRANT INSERT(sha256) ON TABLE app.models TO brand_system;

GRANT INSERT(bytes) ON TABLE app.models TO brand_system;

GRANT INSERT(rank) ON TABLE app.models TO brand_system;

GRANT INSERT(trigger_word) ON TABLE app.models TO brand_system;

GRANT INSERT(base_revision) ON TABLE app.models TO brand_system;

GRANT INSERT(metrics) ON TABLE app.models TO brand_system;

GRANT SELECT(created_at) ON TABLE app.models TO onbrand_definer;

GRANT SELECT,INSERT,UPDATE ON TABLE app.numbers TO onbrand_definer;

GRANT SELECT ON TABLE app.upload_objects TO authenticated;

GRANT INSERT(brand_id) ON TABLE app.upload_objects TO authenticated;

GRANT INSERT(upload_id) ON TABLE app.upload_objects TO authenticated;

GRANT INSERT(index) ON TABLE app.upload_objects TO authenticated;

GRANT INSERT(asset_id) ON TABLE app.upload_objects TO authenticated;

GRANT INSERT(document_id) ON TABLE app.upload_objects TO authenticated;

GRANT SELECT ON TABLE app.uploads TO authenticated;
GRANT DELETE ON TABLE app.uploads TO onbrand_definer;

GRANT SELECT(id) ON TABLE app.uploads TO onbrand_definer;

GRANT INSERT(brand_id) ON TABLE app.uploads TO authenticated;
GRANT SELECT(brand_id) ON TABLE app.uploads TO onbrand_definer;

GRANT INSERT(user_id) ON TABLE app.uploads TO authenticated;
GRANT SELECT(user_id) ON TABLE app.uploads TO onbrand_definer;

GRANT INSERT(kind) ON TABLE app.uploads TO authenticated;
GRANT SELECT(kind) ON TABLE app.uploads TO onbrand_definer;

GRANT INSERT(filename) ON TABLE app.uploads TO authenticated;

GRANT INSERT(content_type) ON TABLE app.uploads TO authenticated;

GRANT INSERT(bytes) ON TABLE app.uploads TO authenticated;

GRANT INSERT(sha256) ON TABLE app.uploads TO authenticated;

GRANT INSERT(object) ON TABLE app.uploads TO authenticated;

GRANT INSERT(caption) ON TABLE app.uploads TO authenticated;

GRANT INSERT(metadata) ON TABLE app.uploads TO authenticated;

GRANT UPDATE(status) ON TABLE app.uploads TO authenticated;
GRANT SELECT(status),UPDATE(status) ON TABLE app.uploads TO onbrand_definer;

GRANT UPDATE(error) ON TABLE app.uploads TO authenticated;

GRANT SELECT(created_at) ON TABLE app.uploads TO onbrand_definer;

GRANT SELECT(expires_at) ON TABLE app.uploads TO onbrand_definer;

GRANT UPDATE(ended_at) ON TABLE app.uploads TO authenticated;
GRANT UPDATE(ended_at) ON TABLE app.uploads TO onbrand_definer;

GRANT SELECT(swept_at),UPDATE(swept_at) ON TABLE app.uploads TO onbrand_definer;

GRANT SELECT(id) ON TABLE identity.sessions TO onbrand_definer;

GRANT SELECT(user_id) ON TABLE identity.sessions TO onbrand_definer;

GRANT SELECT(last_seen_at) ON TABLE identity.sessions TO onbrand_definer;

GRANT SELECT(idle) ON TABLE identity.sessions TO onbrand_definer;

GRANT SELECT(expires_at) ON TABLE identity.sessions TO onbrand_definer;

GRANT SELECT(ended_at) ON TABLE identity.sessions TO onbrand_definer;

GRANT SELECT ON TABLE storage.buckets TO authenticated;
GRANT SELECT ON TABLE storage.buckets TO brand_system;

GRANT SELECT,DELETE ON TABLE storage.objects TO authenticated;
GRANT SELECT ON TABLE storage.objects TO brand_system;

GRANT INSERT(bucket_id) ON TABLE storage.objects TO authenticated;
GRANT INSERT(bucket_id) ON TABLE storage.objects TO brand_system;

GRANT INSERT(name) ON TABLE storage.objects TO authenticated;
GRANT INSERT(name) ON TABLE storage.objects TO brand_system;

GRANT INSERT(user_id) ON TABLE storage.objects TO authenticated;
GRANT INSERT(user_id) ON TABLE storage.objects TO brand_system;

GRANT INSERT(content_type) ON TABLE storage.objects TO authenticated;
GRANT INSERT(content_type) ON TABLE storage.objects TO brand_system;

GRANT INSERT(bytes) ON TABLE storage.objects TO authenticated;
GRANT INSERT(bytes) ON TABLE storage.objects TO brand_system;

ALTER DEFAULT PRIVILEGES FOR ROLE onbrand_definer REVOKE ALL ON FUNCTIONS FROM PUBLIC;

ALTER DEFAULT PRIVILEGES FOR ROLE onbrand_identity REVOKE ALL ON FUNCTIONS FROM PUBLIC;

ALTER DEFAULT PRIVILEGES FOR ROLE onbrand_owner REVOKE ALL ON FUNCTIONS FROM PUBLIC;
