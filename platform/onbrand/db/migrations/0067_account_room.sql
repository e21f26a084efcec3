-- depends: 0066_fair_shares
-- Pictures that wait are bounded by account, too: an account with many brands holds no more than one with a few.
grant select (num_images) on app.generations to onbrand_definer;
grant select (brand_id, generation_id) on app.generated_images to onbrand_definer;

set role onbrand_definer;

-- Whether n more pictures of brand b may wait, when all brands of its account together have so many at most. Those who ask
-- in brands of one account wait for each other from here to the end of their transactions.
create function private.account_has_room(b text, n integer, most integer) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
declare
  account uuid;
begin
  if not coalesce(private.acts_in(b), false) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  select o.user_id into account from app.brands o where o.id = b;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('admission-of', account::text));
  return n <= most - (
    select coalesce(sum(g.num_images - (select count(*) from app.generated_images i
      where i.brand_id = g.brand_id and i.generation_id = g.id)), 0)
    from app.brands o join app.generations g on g.brand_id = o.id
    where uuid_send(o.user_id) = uuid_send(account) and g.status in ('pending', 'running'));
end $$;

reset role;
grant execute on function private.account_has_room(text, integer, integer) to authenticated;
